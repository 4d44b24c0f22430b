-- Begins a new epoch, in which nothing is kept yet, unless another process was quicker.
--   KEYS[1] the log; ARGV: the epoch that ends, or '', the new one, and up to which number of the log every change is
--   seen by whatever is read from now on
local held = redis.call('HGET', KEYS[1], 'epoch') or ''
if held == ARGV[1] then
    redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'position', ARGV[3])
    return 1
end
return 0
