-- The generic cell rate algorithm, for all policies of a request in one step: either each lets it in and
-- counts it, or none counts it. KEYS: one a policy. ARGV: for each, microseconds between two requests, and of
-- the window. Answers four numbers a policy: 1 if it lets in, how many more it would, microseconds until it
-- lets the next in, and until the quota is whole again.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local answer, due, let_in = {}, {}, true

for i, key in ipairs(KEYS) do
    local interval, window = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
    -- When all that was let in so far will have been worked off, at the steady rate.
    local before = math.max(tonumber(redis.call('GET', key)) or now, now)
    local after = before + interval
    if after - now > window then
        let_in = false
        due[i] = before
        answer[4 * i - 3] = 0
        answer[4 * i - 1] = after - now - window
    else
        due[i] = after
        answer[4 * i - 3] = 1
        answer[4 * i - 1] = 0
    end
    answer[4 * i - 2] = math.floor((window - (due[i] - now)) / interval)
    answer[4 * i] = due[i] - now
end

if let_in then
    for i, key in ipairs(KEYS) do
        redis.call('SET', key, string.format('%.0f', due[i]), 'PX', math.ceil((due[i] - now) / 1000))
    end
end
return answer
