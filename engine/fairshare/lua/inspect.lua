-- inspect: one lane as it is now.
--
-- ARGV: [1] time or ''
--       [2] tenant
--       [3] how many flows to look at for the oldest message
-- Returns nil for an unknown tenant, else {weight, cap, rate, burst, paused, version or '', in flight, backlog, flows
-- with waiting messages, start tag, virtual time, seconds until its rate lets it go on, worker-seconds lately,
-- worker-seconds of all lanes lately, age in seconds of the oldest waiting message or ''}; numbers as text.
local now, tenant, flows = clock(ARGV[1]), ARGV[2], tonumber(ARGV[3])
open(now)
local lane = load_lane(tenant)
if not lane.known then return nil end
local order = stem .. 'order:' .. tenant
local oldest
for _, flow in ipairs(redis.call('ZRANGE', order, 0, flows - 1)) do
  for priority = 0, 9 do
    local first = redis.call('ZRANGEBYSCORE', flow_key(tenant, flow), priority * PRIORITY,
      '(' .. exact((priority + 1) * PRIORITY), 'WITHSCORES', 'LIMIT', 0, 1)
    local at = first[2] and tonumber(first[2]) - priority * PRIORITY
    if at and (not oldest or at < oldest) then oldest = at end
  end
end
local held = 0
if lane.rate > 0 then held = math.max(lane.tat - (lane.burst - 1) / lane.rate - now, 0) end
local v = redis.call('HMGET', state, 'time', 'recent', 'recent_at')
return {
  exact(lane.weight), exact(lane.cap), exact(lane.rate), exact(lane.burst), lane.paused and '1' or '0',
  lane.version and exact(lane.version) or '', exact(lane.in_flight), exact(lane.backlog),
  exact(redis.call('ZCARD', order)), exact(lane.tag), exact(tonumber(v[1] or 0)), exact(held),
  exact(decayed(lane.recent, lane.recent_at, now)),
  exact(decayed(tonumber(v[2] or 0), tonumber(v[3] or 0), now)),
  oldest and exact(math.max(now - oldest / 10000, 0)) or '',
}
