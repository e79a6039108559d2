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

local function add(id, tenant, flow, priority, nonce, words, payload)
  if again and redis.call('ZSCORE', settled, nonce) then return 0 end
  local lane = load_lane(tenant)
  local score = next_score(lane, tonumber(priority), now)
  local entry = {tenant = tenant, flow = flow, score = score, deliveries = 0, nonce = nonce, payload = payload}
  if redis.call('HSETNX', messages, id, pack_entry(entry)) == 0 then return 0 end
  if not lane.known then redis.call('ZADD', lanes, 0, tenant) end
  if words ~= '' then configure_lane(lane, words) end
  enqueue(lane, flow, id, score, queue, now)
  save_lane(lane, 'backlog', 'seq')
  startable = startable + math.min(place(lane, now, queue), 1)
  added = added + 1
  return 1
end

for i = 3, #ARGV, 7 do results[#results + 1] = add(unpack(ARGV, i, i + 6)) end
count('published', added)
count('repeated', #results - added)
ring(startable)
return results
