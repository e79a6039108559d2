-- position: where a message is, and what it waits for. O(log n).
--
-- ARGV: [1] time or ''
--       [2] id
-- Returns nil when there is no such message; {'leased', tenant, flow, seconds since its claim} when a worker has it; else
-- {'waiting', tenant, flow, messages of its flow ahead of it, tenants ahead of its tenant or '' when that is not ready,
--  reason: 'paused', 'tenant_concurrency', 'rate' or 'fair_turn', seconds until its rate lets the tenant go on}.
local now, id = clock(ARGV[1]), ARGV[2]
open(now)
local record = redis.call('HGET', leased, id)
if record then
  local lease = parse_lease(record)
  return {'leased', lease.tenant, lease.flow, exact(now - lease.since)}
end
local text = redis.call('HGET', messages, id)
local entry = text and parse_entry(text)
local ahead = entry and redis.call('ZRANK', flow_key(entry.tenant, entry.flow), id)
if not ahead then return nil end
local lane = load_lane(entry.tenant)
local due = redis.call('ZSCORE', throttled, entry.tenant)
local reason = 'fair_turn'
if lane.paused then
  reason = 'paused'
elseif lane.cap > 0 and lane.in_flight >= lane.cap then
  reason = 'tenant_concurrency'
elseif due then
  reason = 'rate'
end
return {'waiting', entry.tenant, entry.flow, ahead, redis.call('ZRANK', ready, entry.tenant) or '', reason,
  exact(due and math.max(tonumber(due) - now, 0) or 0)}
