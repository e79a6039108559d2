-- claim: leases the messages that are fairest now.
--
-- Start-time fair queueing on two levels. The tenant with the smallest start tag S is next, behind those that have
-- their first turn; the virtual time becomes S; S grows by estimate / weight. Inside the tenant its flows take turns by
-- the same rule, unweighted. Inside a flow the order is priority, then age. A message moves from list to lease in this
-- one script: there is no moment in which it is in neither.
--
-- ARGV: [1] time or ''
--       [2] seconds of the lease
--       [3] token of the leases
--       [4] how many messages at most (64 at most)
-- Returns {born, seconds until the next throttled lane may go on or '', 1 if work is left else 0,
--          then for each message: id, deliveries before this one, payload}.
local now, seconds, token, wanted = clock(ARGV[1]), tonumber(ARGV[2]), ARGV[3], math.min(tonumber(ARGV[4]), 64)
local queue = open(now)
local time_before = queue.time
local result, claimed, looked = {queue.born, '', 0}, 0, 0
promote(now, queue, 64)

-- Leases the next message of the lane's next flow. Returns its charge, its id, the deliveries before and the payload;
-- nil when the order names a flow or message that is gone.
local function take(lane)
  local order = stem .. 'order:' .. lane.tenant
  local head = redis.call('ZRANGE', order, 0, 0)
  if not head[1] then
    lane.backlog = 0
    return nil
  end
  local key = flow_key(lane.tenant, head[1])
  local id, score = unpack(redis.call('ZPOPMIN', key))
  local more = redis.call('EXISTS', key) == 1
  local text = id and redis.call('HGET', messages, id)
  local entry = text and parse_entry(text)
  if id then lane.backlog = math.max(lane.backlog - 1, 0) end
  if text and not entry then
    redis.call('HDEL', messages, id)
    put_aside(id, 'unknown entry version', now, text)
  end
  if not entry then
    if not more then redis.call('ZREM', order, head[1]) end
    return nil
  end
  local flow = load_flow(lane.tenant, head[1], queue)
  lane.flow_time = math.max(lane.flow_time, flow.tag)
  flow.tag = flow.tag + flow.estimate
  save_flow(lane.tenant, flow)
  if more then redis.call('ZADD', order, flow.tag, flow.name) else redis.call('ZREM', order, flow.name) end
  local charge = grant_lease(id, token, lane, flow, entry.nonce, score, now, seconds)
  return charge, id, entry.deliveries, text:sub(entry.start)
end

while claimed < wanted and looked < 2 * wanted do
  looked = looked + 1
  local tenant = redis.call('ZRANGE', ready, 0, 0)[1]
  if not tenant then break end
  local lane = load_lane(tenant)
  local charge, id, deliveries, payload = take(lane)
  if charge then
    queue.time = math.max(queue.time, lane.tag)
    lane.tag = lane.tag + charge
    lane.in_flight = lane.in_flight + 1
    if lane.rate > 0 then lane.tat = math.max(lane.tat, now) + 1 / lane.rate end
    claimed = claimed + 1
    result[#result + 1] = id
    result[#result + 1] = deliveries
    result[#result + 1] = payload
  end
  save_lane(lane, 'in_flight', 'backlog', 'tag', 'flow_time', 'tat')
  place(lane, now, queue, true)
end

if queue.time > time_before then redis.call('HSET', state, 'time', queue.time) end
count('claimed', claimed)
result[2] = next_due(now)
if redis.call('ZCARD', ready) > 0 then
  result[3] = 1
  if redis.call('LLEN', tickets) == 0 then ring(1) end
else
  drop_tickets(2 * MAX_TICKETS)  -- they would wake workers for nothing
end
return result
