-- set_aside: keeps a message that cannot be delivered, or was rejected for good, where an operator finds it.
--
-- ARGV: [1] time or ''
--       [2] id
--       [3] token of its lease, or '' for something that never was a message of this queue
--       [4] reason
--       [5] raw payload, when there is no token
-- Returns 1, or 0 when that lease was over: then nothing changed.
local now, id, token, reason = clock(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
if token == '' then
  put_aside(id, reason, now, ARGV[5])
  return 1
end
local queue, lease = open(now), end_lease(id, token)
if not lease then return 0 end
put_aside(id, reason, now, redis.call('HGET', messages, id) or '')
redis.call('HDEL', messages, id)
local lane = load_lane(lease.tenant)
lane.in_flight = math.max(lane.in_flight - 1, 0)
save_lane(lane, 'in_flight')
local dispatchable, became_ready = place(lane, now, queue)
if became_ready then ring(dispatchable) end
return 1
