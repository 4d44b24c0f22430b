-- Requests the ids from 1 to COUNT in turn: wrk --script round_robin.lua http://…/products/ -- COUNT
local requests, last = {}, 0

function init(arguments)
    for id = 1, tonumber(arguments[1]) do
        requests[id] = wrk.format(nil, wrk.path .. id)
    end
end

function request()
    last = last % #requests + 1
    return requests[last]
end
