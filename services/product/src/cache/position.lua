-- Notes up to which number of the log everything here is up to date; it never goes back by itself. Answers what was
-- noted before, or -1.
--   KEYS[1] the position; ARGV: number
local held = tonumber(redis.call('GET', KEYS[1]) or '-1')
if held < tonumber(ARGV[1]) then
    redis.call('SET', KEYS[1], ARGV[1])
end
return held
