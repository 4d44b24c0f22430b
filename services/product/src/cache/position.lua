-- Notes up to which number of the log everything here is up to date, for somebody who has just reported all that comes
-- behind another number. It never goes back by itself, and does not go on where something is missing in between. Answers
-- what was noted before, or -1.
--   KEYS[1] the position; ARGV: up to which number, and behind which
local held = tonumber(redis.call('GET', KEYS[1]) or '-1')
local missing = held >= 0 and held < tonumber(ARGV[2])
if held < tonumber(ARGV[1]) and not missing then
    redis.call('SET', KEYS[1], ARGV[1])
end
return held
