-- renew: extends the leases of everything one consumer has in hand, and notes that it is alive.
--
-- ARGV: [1] time or ''
--       [2] seconds of the lease, from now
--       [3] consumer, or '' for one that does not consume this queue any more
--       then for each message: id, token of its lease
-- Returns {born, then the ids whose lease is not there (any more)}. When `born` is not what the claim returned, Redis
-- lost its data in between and the consumer registers them again; else their leases ran out and others may have them.
local now, seconds = clock(ARGV[1]), tonumber(ARGV[2])
local result = {load_queue(now).born}
for i = 4, #ARGV, 2 do
  local id, token = ARGV[i], ARGV[i + 1]
  local record = redis.call('HGET', leased, id)
  if record and parse_lease(record).token == token then
    redis.call('ZADD', leases, now + seconds, id)
  else
    result[#result + 1] = id
  end
end
if ARGV[3] ~= '' then
  redis.call('ZADD', stem .. 'workers', now, ARGV[3])
  redis.call('ZREMRANGEBYSCORE', stem .. 'workers', '-inf', now - 10 * seconds)
end
return result
