-- revive: puts messages that were set aside back into their lanes, behind the others.
--
-- ARGV: [1] time or ''
--       then the ids
-- Returns, for each id, 1 when it waits again, 0 when it is not set aside, or is nothing that could be delivered.
local now = clock(ARGV[1])
local queue = open(now)
local results, startable = {}, 0
for i = 2, #ARGV do
  local id = ARGV[i]
  local text = redis.call('HGET', aside, id)
  text = text and text:sub((text:find('\n', 1, true) or 0) + 1)
  local entry = text and parse_entry(text)
  results[#results + 1] = entry and 1 or 0
  if entry then
    redis.call('HDEL', aside, id)
    if redis.call('HEXISTS', messages, id) == 0 then
      local lane = load_lane(entry.tenant)
      if not lane.known then redis.call('ZADD', lanes, 0, entry.tenant) end
      redis.call('HSET', messages, id, delivered(text))
      enqueue(lane, entry.flow, id, next_score(queue, entry.priority, now), queue, now)
      save_lane(lane, 'backlog')
      startable = startable + math.min(place(lane, now, queue), 1)
    end
  end
end
save_seq(queue)
ring(startable)
return results
