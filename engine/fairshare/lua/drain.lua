-- drain: removes waiting messages of one tenant, at most `limit`; what workers have in hand stays.
--
-- ARGV: [1] time or ''
--       [2] tenant
--       [3] limit
-- Returns {messages removed, messages of the tenant that still wait}.
local now, tenant, limit = clock(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local queue, lane = open(now), load_lane(tenant)
local removed = 0
while removed < limit do
  local flow = redis.call('ZRANGE', stem .. 'order:' .. tenant, 0, 0)[1]
  if not flow then break end
  local ids = redis.call('ZRANGE', flow_key(tenant, flow), 0, math.min(limit - removed, 500) - 1)
  if #ids == 0 then
    redis.call('ZREM', stem .. 'order:' .. tenant, flow)
  else
    for _, id in ipairs(ids) do dequeue(lane, flow, id) end
    redis.call('HDEL', messages, unpack(ids))
    removed = removed + #ids
  end
end
if removed > 0 then
  save_lane(lane, 'backlog')
  place(lane, now, queue)
  count('cancelled', removed)
end
return {removed, lane.backlog}
