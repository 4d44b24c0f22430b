-- Records all connections of some users at one gateway. The newest connections of each user over all gateways remain, up
-- to the limit; the older ones are evicted.
--
-- KEYS, for each user: the hash of its connections. A field is `<gateway>:<number>`, its value `<start> <end of lease>`,
-- both in microseconds since the Unix epoch.
--
-- ARGV:
--   1. the gateway
--   2. the limit
--   3. the duration of a lease in milliseconds
--   4. for each user: the number of its connections at the gateway, then for each of them its number, and its age in
--      microseconds
--
-- Result, one flat list, for each evicted connection: the index of its user in KEYS, and its field.
local gateway, limit, ttl = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local result, arg = {}, 4

local function is_newer(one, other)
    if one.start ~= other.start then
        return one.start > other.start
    end
    return one.field > other.field
end

for index, key in ipairs(KEYS) do
    local connections, starts = {}, {}
    local stored = redis.call('HGETALL', key)
    for i = 1, #stored, 2 do
        local field, value = stored[i], stored[i + 1]
        local start, lease_end = string.match(value, '^(%d+) (%d+)$')
        if string.sub(field, 1, #gateway + 1) == gateway .. ':' then
            starts[field] = tonumber(start)
        elseif (tonumber(lease_end) or 0) > now then
            connections[#connections + 1] = {field = field, start = tonumber(start), value = value}
        end
    end
    local count = tonumber(ARGV[arg])
    for i = arg + 1, arg + 2 * count, 2 do
        local field = gateway .. ':' .. ARGV[i]
        local start = starts[field] or now - tonumber(ARGV[i + 1])
        local value = string.format('%.0f %.0f', start, now + ttl * 1000)
        connections[#connections + 1] = {field = field, start = start, value = value}
    end
    arg = arg + 1 + 2 * count

    table.sort(connections, is_newer)
    redis.call('DEL', key)
    for i, connection in ipairs(connections) do
        if i <= limit then
            redis.call('HSET', key, connection.field, connection.value)
        else
            result[#result + 1] = tostring(index)
            result[#result + 1] = connection.field
        end
    end
    redis.call('PEXPIRE', key, ttl)
end
return result
