-- Stores a product unless a newer one, or a newer tombstone, is present. An empty product is a tombstone:
-- older ones cannot be stored again until it expires.
-- Returns 1 if it was stored, else 0.
-- KEYS[1] the product
-- ARGV[1] the revision
-- ARGV[2] the lifetime in milliseconds
-- ARGV[3] the product as JSON, or '' for a tombstone
local stored = tonumber(redis.call('HGET', KEYS[1], 'revision') or '-1')
local revision = tonumber(ARGV[1])
if stored > revision or (stored == revision and ARGV[3] == '') then
    return 0
end
redis.call('HSET', KEYS[1], 'revision', ARGV[1], 'answer', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
