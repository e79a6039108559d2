-- recall: gives back what a claim leased whose reply never arrived.
--
-- ARGV: [1] time or ''
--       [2] token of that claim
-- Returns how many messages went back to the place they had. Leases are as many as the workers have slots, so looking
-- through all of them, in this rare case, is bounded by the size of the fleet.
local now, token = clock(ARGV[1]), ARGV[2]
local queue = open(now)
local records = redis.call('HGETALL', leased)
local returned, startable = 0, 0
for i = 1, #records, 2 do
  local id, lease = records[i], parse_lease(records[i + 1])
  if lease.token == token and redis.call('HEXISTS', messages, id) == 1 then
    end_lease(id, token)
    startable = startable + math.min(give_back(id, lease, now, queue, {seconds = 0}), 1)
    returned = returned + 1
  end
end
count('requeued', returned)
ring(startable)
return returned
