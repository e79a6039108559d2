-- ack: ends leases whose messages are done, and charges what was measured.
--
-- ARGV: [1] time or ''
--       then for each message: id, token of its lease, measured worker-seconds
-- Returns, for each message, 1 when its lease ended here and 0 when that lease was over: then nothing changed.
local now = clock(ARGV[1])
local queue = open(now)
local results, done, served, startable = {}, 0, 0, 0
for i = 2, #ARGV, 3 do
  local id, token, seconds = ARGV[i], ARGV[i + 1], math.max(tonumber(ARGV[i + 2]), 0)
  local lease = end_lease(id, token)
  if lease then
    redis.call('HDEL', messages, id)
    redis.call('ZADD', settled, now, lease.nonce)
    local lane = load_lane(lease.tenant)
    lane.in_flight = math.max(lane.in_flight - 1, 0)
    local flow = settle(lane, lease, seconds, now, queue)
    flow.estimate = measured(flow.estimate, seconds)
    queue.estimate = measured(queue.estimate, seconds)
    save_flow(lane.tenant, flow)
    if lane.backlog > 0 then move(stem .. 'order:' .. lane.tenant, flow.name, flow.tag) end
    save_lane(lane, 'in_flight', 'tag', 'recent', 'recent_at')
    local dispatchable, became_ready = place(lane, now, queue)
    if became_ready then startable = startable + math.min(dispatchable, 1) end
    done, served = done + 1, served + seconds
  end
  results[#results + 1] = lease and 1 or 0
end
if done > 0 then
  local v = redis.call('HMGET', state, 'recent', 'recent_at')
  redis.call('HSET', state, 'estimate', queue.estimate, 'recent_at', now,
    'recent', decayed(tonumber(v[1] or 0), tonumber(v[2] or 0), now) + served)
  redis.call('ZREMRANGEBYSCORE', settled, '-inf', now - SETTLED)
end
count('acked', done)
count('late', #results - done)
ring(startable)
return results
