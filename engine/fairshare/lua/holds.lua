-- holds: which of these messages the queue has, waiting or in a worker's hands.
--
-- ARGV: the ids
-- Returns, for each id, 1 or 0.
open(clock(''))
local results = {}
for i, id in ipairs(ARGV) do results[i] = redis.call('HEXISTS', messages, id) end
return results
