-- The generic cell rate algorithm (GCRA) for a batch of groups of equal requests: one key, the same policies.
--
-- KEYS, for each group:
--   * one key per policy. Its value is the theoretical arrival time (TAT) in microseconds since the Unix epoch:
--     the time at which the bucket is full again.
--
-- ARGV, for each group:
--   1. the number of its policies
--   2. the number of its requests
--   3. for each policy: the emission interval (window / quota), then the window, both in microseconds
--
-- Result, one flat list, for each group:
--   1. allowed: how many of its requests are allowed and counted, the first ones of the group
--   2. for each policy:
--      * remaining: how many more requests the policy would allow now
--      * retry_after: microseconds until the policy allows the next request, 0 if it would allow one now
--      * reset_after: microseconds until the bucket is full again
--
-- A request is counted by all policies of its group or by none.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local result, arg, key = {}, 1, 0

while arg <= #ARGV do
    local policies, requests = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1])
    arg = arg + 2
    local tats, allowed = {}, requests
    for i = 1, policies do
        local interval, window = tonumber(ARGV[arg + 2 * i - 2]), tonumber(ARGV[arg + 2 * i - 1])
        tats[i] = math.max(tonumber(redis.call('GET', KEYS[key + i])) or now, now)
        allowed = math.min(allowed, math.floor((window - (tats[i] - now)) / interval))
    end
    allowed = math.max(allowed, 0)
    result[#result + 1] = allowed
    for i = 1, policies do
        local interval, window = tonumber(ARGV[arg + 2 * i - 2]), tonumber(ARGV[arg + 2 * i - 1])
        local tat = tats[i] + allowed * interval
        if allowed > 0 then
            redis.call('SET', KEYS[key + i], string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000))
        end
        result[#result + 1] = math.floor((window - (tat - now)) / interval)
        result[#result + 1] = math.max(tat + interval - now - window, 0)
        result[#result + 1] = tat - now
    end
    arg = arg + 2 * policies
    key = key + policies
end
return result
