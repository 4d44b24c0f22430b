-- The generic cell rate algorithm for many callers in one step. KEYS: one for each policy of each group of equal
-- requests. ARGV: for each group how many policies apply, how many requests there are, how many more are asked for in
-- advance, how many that were let in in advance never came, and since how many microseconds at most; for each of its
-- policies microseconds between two requests, and of the window. A request is let in, and counted, by all policies of its
-- group or by none; the first of a group are let in first. In advance nothing is let in but what leaves half of each
-- quota. What never came is counted back, but for what that time has given back already. Answers for each group how many
-- of it were let in, and how many in advance; for each policy how many more it would let in, microseconds until it lets
-- the next in, and until the quota is whole again.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local answer, at, key = {}, 1, 0

while at <= #ARGV do
    local policies, requests, advance = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local unused, age = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
    at = at + 5
    -- When all that was let in so far will have been worked off, at the steady rate.
    local before, let_in = {}, requests
    for i = 1, policies do
        local interval, window = tonumber(ARGV[at + 2 * i - 2]), tonumber(ARGV[at + 2 * i - 1])
        local due = tonumber(redis.call('GET', KEYS[key + i])) or now
        before[i] = math.max(due - math.max(unused * interval - age, 0), now)
        local room = window - (before[i] - now)
        let_in = math.min(let_in, math.floor(room / interval))
        advance = math.min(advance, math.floor((room - window / 2) / interval) - requests)
    end
    let_in, advance = math.max(let_in, 0), math.max(advance, 0)
    answer[#answer + 1] = let_in
    answer[#answer + 1] = advance
    for i = 1, policies do
        local interval, window = tonumber(ARGV[at + 2 * i - 2]), tonumber(ARGV[at + 2 * i - 1])
        local due = before[i] + (let_in + advance) * interval
        if due > now and (let_in > 0 or unused > 0) then
            redis.call('SET', KEYS[key + i], string.format('%.0f', due), 'PX', math.ceil((due - now) / 1000))
        elseif unused > 0 then
            redis.call('DEL', KEYS[key + i])
        end
        answer[#answer + 1] = math.floor((window - (due - now)) / interval)
        answer[#answer + 1] = math.max(due + interval - now - window, 0)
        answer[#answer + 1] = due - now
    end
    at = at + 2 * policies
    key = key + policies
end
return answer
