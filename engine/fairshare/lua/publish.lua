-- publish: adds messages, each at most once by its id.
--
-- ARGV: [1] time or ''
--       [2] '1' when the publisher tries again because it did not see the first reply, else ''
--       then for each message: id, tenant, flow, priority (0 = first), nonce (of this publish, the same over its
--       tries), lane ("version weight cap rate burst [paused]", '-' = unsaid; or ''), payload
-- Returns, for each message, 1 when it was added and 0 when it is there already, waiting or in a worker's hands.
local now, again = clock(ARGV[1]), ARGV[2] == '1'
local queue = load_queue(now)
local results, added, startable = {}, 0, 0
for i = 3, #ARGV, 7 do
  local id, tenant, flow, priority, nonce, words, payload = unpack(ARGV, i, i + 6)
  local entry = {tenant = tenant, flow = flow, deliveries = 0, nonce = nonce, payload = payload}
  local known = redis.call('HEXISTS', messages, id) == 1
    or (again and redis.call('ZSCORE', settled, nonce) and true)
  if not known then
    local lane = load_lane(tenant)
    if not lane.known then redis.call('ZADD', lanes, 0, tenant) end
    if words ~= '' then configure_lane(lane, words) end
    entry.score = next_score(lane, tonumber(priority), now)
    redis.call('HSET', messages, id, pack_entry(entry))
    enqueue(lane, flow, id, entry.score, queue)
    save_lane(lane, 'backlog', 'seq')
    startable = startable + math.min(place(lane, now, queue), 1)
    added = added + 1
  end
  results[#results + 1] = known and 0 or 1
end
count('published', added)
count('repeated', #results - added)
ring(startable)
return results
