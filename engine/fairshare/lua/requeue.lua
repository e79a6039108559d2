-- requeue: gives leased messages back to their lanes.
--
-- ARGV: [1] time or ''
--       then for each message: id, token of its lease, measured worker-seconds, where
--       where: 'behind' = rejected, goes behind the others of its priority and counts as delivered;
--              'place'  = never begun, goes back to the place it had
-- Returns, for each message, 1 when it was given back and 0 when that lease was over: then nothing changed.
local now = clock(ARGV[1])
local queue = open(now)
local results, done, startable = {}, 0, 0
for i = 2, #ARGV, 4 do
  local id, token, seconds, where = unpack(ARGV, i, i + 3)
  local lease = redis.call('HEXISTS', messages, id) == 1 and end_lease(id, token)
  if lease then
    local behind = where == 'behind'
    local options = {seconds = math.max(tonumber(seconds), 0), behind = behind, delivered = behind}
    startable = startable + math.min(give_back(id, lease, now, queue, options), 1)
    done = done + 1
  end
  results[#results + 1] = lease and 1 or 0
end
count('requeued', done)
count('late', #results - done)
ring(startable)
return results
