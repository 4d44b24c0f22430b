-- Advances the position of an epoch: the id of the log up to which all invalidations were published. It never
-- decreases.
-- Returns 1, or 0 if the epoch has ended or the stored position is below ARGV[2] (Redis has lost data).
-- KEYS[1] the log
-- ARGV[1] the epoch
-- ARGV[2] the id up to which the caller had published before
-- ARGV[3] the new position
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
    return 0
end
local stored = tonumber(redis.call('HGET', KEYS[1], 'position') or '-1')
if stored < tonumber(ARGV[2]) then
    return 0
end
if stored < tonumber(ARGV[3]) then
    redis.call('HSET', KEYS[1], 'position', ARGV[3])
end
return 1
