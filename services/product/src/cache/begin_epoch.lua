-- Begins a new, empty epoch, unless another process has begun one already (compare and set).
-- Returns 1 if the epoch was begun, else 0.
-- KEYS[1] the log
-- ARGV[1] the epoch that ends, or ''
-- ARGV[2] the new epoch
-- ARGV[3] its position: every read from now on contains all changes up to this id
local stored = redis.call('HGET', KEYS[1], 'epoch') or ''
if stored == ARGV[1] then
    redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'position', ARGV[3])
    return 1
end
return 0
