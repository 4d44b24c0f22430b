-- The generic cell rate algorithm for many callers in one step. KEYS: one for each policy of each group of equal
-- requests. ARGV: for each group how many policies apply and how many requests there are; for each of its policies
-- microseconds between two requests, and of the window. A request is let in, and counted, by all policies of its group
-- or by none; the first of a group are let in first. Answers for each group how many of it; for each policy how many
-- more it would let in, microseconds until it lets the next in, and until the quota is whole again.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local answer, at, key = {}, 1, 0

while at <= #ARGV do
    local policies, requests = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
    at = at + 2
    -- When all that was let in so far will have been worked off, at the steady rate.
    local before, let_in = {}, requests
    for i = 1, policies do
        local interval, window = tonumber(ARGV[at + 2 * i - 2]), tonumber(ARGV[at + 2 * i - 1])
        before[i] = math.max(tonumber(redis.call('GET', KEYS[key + i])) or now, now)
        let_in = math.min(let_in, math.floor((window - (before[i] - now)) / interval))
    end
    let_in = math.max(let_in, 0)
    answer[#answer + 1] = let_in
    for i = 1, policies do
        local interval, window = tonumber(ARGV[at + 2 * i - 2]), tonumber(ARGV[at + 2 * i - 1])
        local due = before[i] + let_in * interval
        if let_in > 0 then
            redis.call('SET', KEYS[key + i], string.format('%.0f', due), 'PX', math.ceil((due - now) / 1000))
        end
        answer[#answer + 1] = math.floor((window - (due - now)) / interval)
        answer[#answer + 1] = math.max(due + interval - now - window, 0)
        answer[#answer + 1] = due - now
    end
    at = at + 2 * policies
    key = key + policies
end
return answer
