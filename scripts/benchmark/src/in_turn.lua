-- Asks for one thing after another, by number: wrk --script in_turn.lua http://…/things/ -- COUNT
local requests, turn = {}, 0

function init(arguments)
    for number = 1, tonumber(arguments[1]) do
        requests[number] = wrk.format(nil, wrk.path .. number)
    end
end

function request()
    turn = turn % #requests + 1
    return requests[turn]
end
