-- register: puts messages that a worker has in hand back on record after Redis lost its data.
--
-- ARGV: [1] time or ''
--       [2] seconds of the lease
--       then for each message: id, token, tenant, flow, priority, nonce, lane (as in publish), payload
-- Returns, for each message, 1 when it is leased to this token now, 0 when another worker has it. One that was published
-- again in the meantime, and still waits, is taken: it stays one message.
local now, seconds = clock(ARGV[1]), tonumber(ARGV[2])
local queue = open(now)
local results, done = {}, 0
for i = 3, #ARGV, 8 do
  local id, token, tenant, flow_name, priority, nonce, words, payload = unpack(ARGV, i, i + 7)
  local record = redis.call('HGET', leased, id)
  local mine = not record or parse_lease(record).token == token
  if not record then
    local lane = load_lane(tenant)
    if not lane.known then redis.call('ZADD', lanes, 0, tenant) end
    if words ~= '' then configure_lane(lane, words) end
    local text = redis.call('HGET', messages, id)
    local entry = text and parse_entry(text)
    if entry then
      dequeue(lane, entry.flow, id)
    else
      entry = {tenant = tenant, flow = flow_name, score = next_score(lane, tonumber(priority), now), deliveries = 0,
        nonce = nonce, payload = payload}
      redis.call('HSET', messages, id, pack_entry(entry))
    end
    local flow = load_flow(tenant, entry.flow, queue)
    lane.tag = lane.tag + grant_lease(id, token, lane, flow, entry, now, seconds)
    lane.in_flight = lane.in_flight + 1
    flow.tag = flow.tag + flow.estimate
    save_flow(tenant, flow)
    save_lane(lane, 'in_flight', 'backlog', 'tag', 'seq')
    place(lane, now, queue)
    done = done + 1
  end
  results[#results + 1] = mine and 1 or 0
end
count('registered', done)
return results
