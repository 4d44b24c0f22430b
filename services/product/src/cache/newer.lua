-- Keeps a product's answer unless a newer one, or word of one, is there. An empty answer is word that everything older
-- is out of date: kept at least as long as somebody may still come with it.
--   KEYS[1] the product; ARGV: revision, how long to keep it in ms, answer
local held = tonumber(redis.call('HGET', KEYS[1], 'revision') or '-1')
local revision = tonumber(ARGV[1])
if held > revision or (held == revision and ARGV[3] == '') then
    return 0
end
redis.call('HSET', KEYS[1], 'revision', ARGV[1], 'answer', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
