-- register: puts messages that a worker has in hand back on record after Redis lost its data.
--
-- ARGV: [1] time or ''
--       [2] seconds of the lease
--       then for each message: id, token, lane as in publish, entry
-- Returns, for each message, 1 when it is leased to this token now, 0 when another worker has it. One that was
-- published again in the meantime, and still waits, is taken: it stays one message.
local now, seconds = clock(ARGV[1]), tonumber(ARGV[2])
local queue = open(now)
local results, done = {}, 0

-- Takes the message out of where it waits; its score and its flow if it does, else a new place and nil.
local function taken(lane, id, priority)
  local text = redis.call('HGET', messages, id)
  local entry = text and parse_entry(text)
  local score = entry and redis.call('ZSCORE', flow_key(lane.tenant, entry.flow), id)
  if not score then return next_score(queue, priority, now), nil end
  dequeue(lane, entry.flow, id)
  return score, entry.flow
end

local function record(id, token, words, text)
  local entry = parse_entry(text)
  local lane = load_lane(entry.tenant)
  if not lane.known then redis.call('ZADD', lanes, 0, lane.tenant) end
  if words ~= '' then configure_lane(lane, words) end
  local score, waits_in = taken(lane, id, entry.priority)
  if not waits_in then redis.call('HSET', messages, id, text) end
  local flow = load_flow(lane.tenant, waits_in or entry.flow, queue)
  lane.tag = lane.tag + grant_lease(id, token, lane, flow, entry.nonce, score, now, seconds)
  lane.in_flight = lane.in_flight + 1
  flow.tag = flow.tag + flow.estimate
  save_flow(lane.tenant, flow)
  save_lane(lane, 'in_flight', 'backlog', 'tag')
  place(lane, now, queue)
end

for i = 3, #ARGV, 4 do
  local id, token = ARGV[i], ARGV[i + 1]
  local lease = redis.call('HGET', leased, id)
  if not lease then
    record(id, token, ARGV[i + 2], ARGV[i + 3])
    done = done + 1
  end
  results[#results + 1] = (not lease or parse_lease(lease).token == token) and 1 or 0
end
save_seq(queue)
count('registered', done)
return results
