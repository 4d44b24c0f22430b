-- Notes up to which number of the log all changes were reported to an epoch. It never goes back. Answers 0, and notes
-- nothing, where the epoch is over or what was reported before is not there any more.
--   KEYS[1] the log; ARGV: the epoch, behind which number the caller has reported everything, and up to which
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
    return 0
end
local held = tonumber(redis.call('HGET', KEYS[1], 'position') or '-1')
if held < tonumber(ARGV[2]) then
    return 0
end
if held < tonumber(ARGV[3]) then
    redis.call('HSET', KEYS[1], 'position', ARGV[3])
end
return 1
