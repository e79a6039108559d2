-- The data model of one fair queue, and the functions its operations share.
--
-- The loader puts this file in front of every operation. An operation is atomic, takes the time as an argument
-- (empty = the clock of Redis) and costs O(log tenants) per message. Loops are bounded by what the caller passes.
-- Effects replication, which reading the clock before writing needs, is the default since Redis 5.
--
-- KEYS, the same two for every operation:
--   [1] tickets    list. The ordinary list of the queue, on which idle workers block with BRPOP. A ticket carries
--                  nothing: it wakes a worker, which then claims what is fairest at that moment.
--   [2] stem       "{<prefix><queue>}:", the beginning of all other keys. They share the hash slot of KEYS[1], but
--                  which lane an operation touches is known only inside it, so they cannot be listed one by one.
--
-- Keys below the stem:
--   inbox          list    what was published since the last operation, oldest first: "1", id, again, lane, joined by
--                          \31, then \n, then the entry. Every operation files them first (`open`), so that nobody ever
--                          sees them here: a publish is two plain writes, and filing many at once is cheaper than one
--                          by one. A publisher that finds several has them filed
--   messages       hash    id -> entry, from publish until ack. An entry is one line of fields and the payload:
--                          "1", tenant, flow, priority, deliveries, nonce, joined by \31, then \n, then the payload
--   flow:<t>\31<f> zset    id -> score, the waiting messages of one flow. The score is priority * 2^45 + place, the
--                          place a hybrid clock (tenths of a millisecond, strictly rising), so a message
--                          keeps its place when it is taken back, and tells its age
--   order:<t>      zset    flow -> its turn: exactly the flows of the tenant with waiting messages
--   flows:<t>      hash    flow -> "<start tag> <floor> <estimate in seconds>"
--   lane:<t>       hash    weight, cap (0 = none), rate (runs per second, 0 = none), burst, paused, version (of this
--                          configuration); in_flight, backlog; tag, floor, flow_time (virtual seconds); tat (GCRA's
--                          theoretical arrival time); recent, recent_at (worker-seconds served, decaying with the
--                          time constant RECENT)
--   lanes          zset    tenant -> 0, every lane there is, in the order of its name
--   ready          zset    tenant -> its turn: exactly the tenants with dispatchable work. A turn is the start tag; for
--                          one that has its first turn, when it came minus FIRST, which is below every tag
--   throttled      zset    tenant -> when its rate lets it go on: tenants held back by nothing but their rate
--   leased         hash    id -> token, tenant, flow, charge, estimate, nonce, when claimed, score, joined by \31
--   leases         zset    id -> deadline, the same ids as `leased`
--   settled        zset    nonce of an acknowledged message -> when; kept for SETTLED seconds, so that a publish
--                          repeated because its reply was lost is known even when its message has run already
--   aside          hash    id -> when, reason, joined by \31, then \n, then the entry or the raw payload
--   workers        zset    consumer -> when it was last heard of
--   state          hash    time (virtual time), estimate (seconds, moving average over all lanes), seq (the last place
--                          given), recent, recent_at, born (when this data set began), epoch (the owner's marker),
--                          attended (when leases were last looked after), grace (no lease is taken back before), and
--                          the counters published, repeated, claimed, acked, late, requeued, expired, registered,
--                          cancelled, set_aside

local tickets = KEYS[1]
local stem = KEYS[2]
local inbox = stem .. 'inbox'
local messages = stem .. 'messages'
local ready = stem .. 'ready'
local throttled = stem .. 'throttled'
local leased = stem .. 'leased'
local leases = stem .. 'leases'
local lanes = stem .. 'lanes'
local state = stem .. 'state'
local settled = stem .. 'settled'
local aside = stem .. 'aside'

local SEP = '\31'
local TICKET = '0'
local INBOX = 128           -- messages; `hands.py` has the same number
local APART = 1e-5          -- seconds between two messages that are filed at the same time: they keep their order
local MAX_TICKETS = 128     -- more would wake nobody: a claim puts a ticket back while work is left
local PRIORITY = 2 ^ 45     -- one priority level in a score
local SMOOTHING = 0.2       -- weight of a new measurement in an estimate
local FIRST_ESTIMATE = 1    -- seconds, before anything was measured
local RECENT = 300          -- seconds, time constant of "recently served"
local SETTLED = 30          -- seconds; a publisher gives up well before
local IDLE = 86400          -- seconds until the flows of an idle tenant are forgotten, give or take an HOUR
local HOUR = 3600
local FIRST = 2 ^ 33        -- seconds; what begins a turn before every start tag, in the order of arrival, until 2242

-- The time in seconds: as given, or that of Redis.
local function clock(given)
  if given ~= '' then return tonumber(given) end
  local now = redis.call('TIME')
  return tonumber(now[1]) + tonumber(now[2]) / 1000000
end

-- A number as text without loss (`..` keeps only 14 digits).
local function exact(number) return string.format('%.17g', number) end

local function count(counter, by)
  if by > 0 then redis.call('HINCRBY', state, counter, by) end
end

-- The queue as a whole.
local function load_queue(now)
  local v = redis.call('HMGET', state, 'time', 'estimate', 'born', 'seq')
  local queue = {time = tonumber(v[1] or 0), estimate = tonumber(v[2] or FIRST_ESTIMATE), born = v[3],
    seq = tonumber(v[4] or 0)}
  if not queue.born then
    queue.born = string.format('%.6f', now)
    redis.call('HSET', state, 'born', queue.born, 'attended', now)
  end
  return queue
end

local function load_lane(tenant)
  local v = redis.call('HMGET', stem .. 'lane:' .. tenant, 'weight', 'cap', 'rate', 'burst', 'paused', 'in_flight',
    'backlog', 'tag', 'floor', 'flow_time', 'tat', 'recent', 'recent_at', 'version')
  return {
    tenant = tenant, known = v[7] and true,
    weight = tonumber(v[1] or 1), cap = tonumber(v[2] or 0), rate = tonumber(v[3] or 0), burst = tonumber(v[4] or 1),
    paused = v[5] == '1', in_flight = tonumber(v[6] or 0), backlog = tonumber(v[7] or 0),
    tag = tonumber(v[8] or 0), floor = tonumber(v[9] or 0), flow_time = tonumber(v[10] or 0),
    tat = tonumber(v[11] or 0), recent = tonumber(v[12] or 0), recent_at = tonumber(v[13] or 0),
    version = v[14] and tonumber(v[14]),
  }
end

-- Writes the named fields of the lane.
local function save_lane(lane, ...)
  local args = {}
  for _, field in ipairs({...}) do
    args[#args + 1] = field
    args[#args + 1] = lane[field]
  end
  redis.call('HSET', stem .. 'lane:' .. lane.tenant, unpack(args))
end

-- Takes over "version weight cap rate burst" ('-' = unsaid), and a sixth word 1 or 0 for paused or not if it is there,
-- unless what the lane has is as new or newer.
local function configure_lane(lane, words)
  local version, weight, cap, rate, burst, paused = words:match('^(%S+) (%S+) (%S+) (%S+) (%S+) ?([01]?)$')
  version = tonumber(version)
  if not version or (lane.version and lane.version >= version) then return false end
  lane.version = version
  lane.weight = tonumber(weight) or lane.weight
  lane.cap = tonumber(cap) or lane.cap
  lane.rate = tonumber(rate) or lane.rate
  lane.burst = tonumber(burst) or lane.burst
  save_lane(lane, 'version', 'weight', 'cap', 'rate', 'burst')
  if paused ~= '' then
    lane.paused = paused == '1'
    redis.call('HSET', stem .. 'lane:' .. lane.tenant, 'paused', paused)
  end
  return true
end

local function flow_key(tenant, flow) return stem .. 'flow:' .. tenant .. SEP .. flow end

local function load_flow(tenant, flow, queue)
  local record = redis.call('HGET', stem .. 'flows:' .. tenant, flow)
  if not record then return {name = flow, tag = 0, floor = 0, estimate = queue.estimate} end
  local tag, floor, estimate = record:match('(%S+) (%S+) (%S+)')
  return {name = flow, tag = tonumber(tag), floor = tonumber(floor), estimate = tonumber(estimate)}
end

local function save_flow(tenant, flow)
  redis.call('HSET', stem .. 'flows:' .. tenant, flow.name,
    string.format('%.17g %.17g %.17g', flow.tag, flow.floor, flow.estimate))
end

-- How many messages of the lane could start now if its rate allowed.
local function room(lane)
  if lane.paused then return 0 end
  if lane.cap > 0 then return math.min(lane.backlog, math.max(lane.cap - lane.in_flight, 0)) end
  return lane.backlog
end

-- Where one begins that was idle: at the virtual time, so that idling earns no credit; or with the first in line, when
-- that one was charged too much and is owed service.
local function beginning(key, virtual_time)
  local first = redis.call('ZRANGEBYSCORE', key, 0, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  return first and math.min(virtual_time, tonumber(first)) or virtual_time
end

-- Puts one that was idle, a lane or a flow, in line. One that has used more than where it begins takes its turn by its
-- tag. One that has not has its first turn before all others, after those that came before it: so what others are
-- owed, and how wrong their estimates are, never delays it. Returns whether its tag was lifted: then the caller saves
-- `tag` and `floor`.
local function join(key, member, one, from, now)
  if one.tag > from then
    redis.call('ZADD', key, one.tag, member)
    return false
  end
  redis.call('ZADD', key, now - FIRST, member)
  if one.tag == from then return false end
  one.tag, one.floor = from, from
  return true
end

-- Moves one that is in line to where its tag says now, unless its first turn is still to come; false when it is not in
-- line.
local function move(key, member, tag)
  local turn = redis.call('ZSCORE', key, member)
  if not turn then return false end
  turn = tonumber(turn)
  if turn >= 0 and turn ~= tag then redis.call('ZADD', key, tag, member) end
  return true
end

-- Puts the lane where its numbers say: into `ready`, into `throttled`, or into neither. `served` says that it has just
-- had its turn; `lane.unsaved`, that the caller saves `tag` and `floor` anyway. Returns how many of its messages are
-- dispatchable, and whether it became ready just now.
local function place(lane, now, queue, served)
  local dispatchable = room(lane)
  if dispatchable < 1 then
    redis.call('ZREM', ready, lane.tenant)
    if lane.rate > 0 then redis.call('ZREM', throttled, lane.tenant) end
    return 0, false
  end
  if lane.rate > 0 then
    local due = lane.tat - (lane.burst - 1) / lane.rate
    if due > now then
      redis.call('ZREM', ready, lane.tenant)
      redis.call('ZADD', throttled, due, lane.tenant)
      return 0, false
    end
    redis.call('ZREM', throttled, lane.tenant)
  end
  if served then
    redis.call('ZADD', ready, lane.tag, lane.tenant)
  elseif not move(ready, lane.tenant, lane.tag) then
    local from = queue.from or beginning(ready, queue.time)
    if join(ready, lane.tenant, lane, from, now) and not lane.unsaved then save_lane(lane, 'tag', 'floor') end
    return dispatchable, true
  end
  return dispatchable, false
end

-- Wakes up to `wanted` idle workers.
local function ring(wanted)
  local missing = math.min(wanted, MAX_TICKETS - redis.call('LLEN', tickets))
  if missing < 1 then return end
  local new = {}
  for i = 1, missing do new[i] = TICKET end
  redis.call('LPUSH', tickets, unpack(new))
end

-- Takes so many tickets out of the list. A real message among them, pushed by a stock client, stays.
local function drop_tickets(number)
  if number < 1 then return end
  for _, item in ipairs(redis.call('RPOP', tickets, number) or {}) do
    if item ~= TICKET then redis.call('RPUSH', tickets, item) end
  end
end

-- A place behind every message with this priority; the caller saves it by `save_seq`.
local function next_score(queue, priority, now)
  queue.seq = math.max(queue.seq + 1, math.floor(now * 10000))
  return priority * PRIORITY + queue.seq
end

local function save_seq(queue) redis.call('HSET', state, 'seq', queue.seq) end

-- Puts a message among the waiting ones of its flow; the caller saves `backlog`.
local function enqueue(lane, flow_name, id, score, queue, now)
  local key, alone = flow_key(lane.tenant, flow_name), lane.backlog == 0
  redis.call('ZADD', key, score, id)
  lane.backlog = lane.backlog + 1
  if alone or redis.call('ZCARD', key) == 1 then
    local order, flow = stem .. 'order:' .. lane.tenant, load_flow(lane.tenant, flow_name, queue)
    local from = alone and lane.flow_time or beginning(order, lane.flow_time)
    if join(order, flow_name, flow, from, now) then save_flow(lane.tenant, flow) end
  end
end

-- Takes a waiting message out of its flow; false when it does not wait there. The caller saves `backlog`.
local function dequeue(lane, flow_name, id)
  local key = flow_key(lane.tenant, flow_name)
  if redis.call('ZREM', key, id) == 0 then return false end
  lane.backlog = math.max(lane.backlog - 1, 0)
  if redis.call('EXISTS', key) == 0 then redis.call('ZREM', stem .. 'order:' .. lane.tenant, flow_name) end
  return true
end

-- The entry as a table; nil when it is of a version that this code does not know.
local function parse_entry(text)
  local tenant, flow, priority, deliveries, nonce, start =
    text:match('^1\31([^\31\n]*)\31([^\31\n]*)\31(%d+)\31(%d+)\31([^\31\n]*)\n()')
  if not tenant then return nil end
  return {tenant = tenant, flow = flow, priority = tonumber(priority), deliveries = deliveries, nonce = nonce,
    start = start}
end

-- The text of an entry, delivered once more.
local function delivered(text)
  return (text:gsub('^(1\31[^\31\n]*\31[^\31\n]*\31%d+\31)(%d+)', function(head, deliveries)
    return head .. (deliveries + 1)
  end, 1))
end

-- Keeps what cannot be delivered where an operator finds it.
local function put_aside(id, reason, now, text)
  redis.call('HSET', aside, id, exact(now) .. SEP .. reason .. '\n' .. text)
  count('set_aside', 1)
end

local function grant_lease(id, token, lane, flow, nonce, score, now, seconds)
  local charge = flow.estimate / lane.weight
  redis.call('HSET', leased, id, table.concat(
    {token, lane.tenant, flow.name, exact(charge), exact(flow.estimate), nonce, exact(now), exact(score)}, SEP))
  redis.call('ZADD', leases, now + seconds, id)
  return charge
end

local function parse_lease(record)
  local token, tenant, flow, charge, estimate, nonce, since, score = record:match(
    '^([^\31]*)\31([^\31]*)\31([^\31]*)\31([^\31]*)\31([^\31]*)\31([^\31]*)\31([^\31]*)\31([^\31]*)$')
  return {token = token, tenant = tenant, flow = flow, charge = tonumber(charge), estimate = tonumber(estimate),
    nonce = nonce, since = tonumber(since), score = tonumber(score)}
end

-- Ends the lease that has this token; nil when there is none (any more): then the caller's hold is over.
local function end_lease(id, token)
  local record = redis.call('HGET', leased, id)
  if not record then return nil end
  local lease = parse_lease(record)
  if lease.token ~= token then return nil end
  redis.call('HDEL', leased, id)
  redis.call('ZREM', leases, id)
  return lease
end

-- A tag after a charge was corrected. What was charged before the lane idled has been forgiven when its tag was
-- lifted to the virtual time, and is not paid back below that floor.
local function corrected(tag, floor, by)
  if by >= 0 then return tag + by end
  return math.max(tag + by, math.min(tag, floor))
end

local function decayed(amount, at, now) return amount * math.exp(math.min(at - now, 0) / RECENT) end

-- Replaces the estimated charge of a lease that ended by what was measured, in the lane and in its flow.
-- The caller saves `tag`, `recent` and `recent_at`.
local function settle(lane, lease, seconds, now, queue)
  lane.tag = corrected(lane.tag, lane.floor, seconds / lane.weight - lease.charge)
  if math.floor(now / HOUR) ~= math.floor(lane.recent_at / HOUR) then
    redis.call('EXPIRE', stem .. 'flows:' .. lane.tenant, IDLE)
  end
  lane.recent, lane.recent_at = decayed(lane.recent, lane.recent_at, now) + seconds, now
  local flow = load_flow(lane.tenant, lease.flow, queue)
  flow.tag = corrected(flow.tag, flow.floor, seconds - lease.estimate)
  return flow
end

local function measured(average, seconds) return average + SMOOTHING * (seconds - average) end

-- Moves lanes whose rate lets them go on into `ready`, at most `limit`; returns how many of their messages can start.
local function promote(now, queue, limit)
  local due = redis.call('ZRANGEBYSCORE', throttled, '-inf', now, 'LIMIT', 0, limit)
  local found = 0
  for _, tenant in ipairs(due) do
    redis.call('ZREM', throttled, tenant)
    found = found + place(load_lane(tenant), now, queue)
  end
  return found
end

-- Seconds until the next throttled lane may go on, as text; '' when there is none.
local function next_due(now)
  local first = redis.call('ZRANGE', throttled, 0, 0, 'WITHSCORES')
  if not first[2] then return '' end
  return exact(math.max(tonumber(first[2]) - now, 0))
end

-- A message whose lease ended goes back to the waiting ones: to the place it had, or behind the others.
-- Returns how many messages of its lane can start now, if that changed.
local function give_back(id, lease, now, queue, options)
  local lane, score = load_lane(lease.tenant), lease.score
  lane.in_flight = math.max(lane.in_flight - 1, 0)
  if options.seconds then
    local flow = settle(lane, lease, options.seconds, now, queue)
    save_flow(lane.tenant, flow)
    move(stem .. 'order:' .. lane.tenant, flow.name, flow.tag)
  end
  if options.behind then
    score = next_score(queue, math.floor(score / PRIORITY), now)
    save_seq(queue)
  end
  if options.delivered then redis.call('HSET', messages, id, delivered(redis.call('HGET', messages, id))) end
  enqueue(lane, lease.flow, id, score, queue, now)
  save_lane(lane, 'in_flight', 'backlog', 'tag', 'recent', 'recent_at')
  return (place(lane, now, queue))
end

-- Whether a message changes nothing but its flow and how many wait: others wait there, its lane is ready, and the lane
-- has a configuration as new as the message's.
local function joins_others(tenant, key, words)
  if words ~= '' then
    local version = redis.call('HGET', stem .. 'lane:' .. tenant, 'version')
    if not version or tonumber(version) < tonumber(words:match('^%S+')) then return false end
  end
  return redis.call('ZSCORE', ready, tenant) and redis.call('EXISTS', key) == 1
end

-- The first message of its flow, or of a lane that is not ready.
local function file_first(entry, id, score, words, queue, at)
  local lane = load_lane(entry.tenant)
  if not lane.known then redis.call('ZADD', lanes, 0, lane.tenant) end
  if words ~= '' then configure_lane(lane, words) end
  enqueue(lane, entry.flow, id, score, queue, at)
  lane.unsaved = true
  place(lane, at, queue)
  save_lane(lane, 'backlog', 'tag', 'floor')
end

-- Stores the entry of a message that was posted; nil when it is here already, waiting or in a worker's hands, or was
-- acknowledged before its publisher tried again.
local function store(text, now)
  local id, again, words, start = text:match('^1\31([^\31]*)\31([^\31]*)\31([^\n]*)\n()')
  local stored = text:sub(start or 1)
  local entry = id and parse_entry(stored)
  if not entry then
    put_aside(id or string.format('posted:%.6f', now), 'unknown version', now, stored)
    return nil
  end
  if again == '1' and redis.call('ZSCORE', settled, entry.nonce) then return nil end
  if redis.call('HSETNX', messages, id, stored) == 0 then return nil end
  return entry, id, words
end

-- Puts what was published since the last operation into its lanes.
local function file(queue, now)
  local posted = redis.call('LRANGE', inbox, 0, -1)
  if #posted == 0 then return end
  redis.call('DEL', inbox)
  queue.from = beginning(ready, queue.time)  -- filing does not change it
  local joining, more, added = {}, {}, 0  -- where messages just join others; how many do in each lane

  local function count_in(tenant)
    if more[tenant] then redis.call('HINCRBY', stem .. 'lane:' .. tenant, 'backlog', more[tenant]) end
    more[tenant] = nil
  end

  for i, text in ipairs(posted) do
    local entry, id, words = store(text, now)
    if entry then
      local tenant, key, at = entry.tenant, flow_key(entry.tenant, entry.flow), now + i * APART
      local mark, score = key .. SEP .. words, next_score(queue, entry.priority, at)
      joining[mark] = joining[mark] or joins_others(tenant, key, words)
      if joining[mark] then
        redis.call('ZADD', key, score, id)
        more[tenant] = (more[tenant] or 0) + 1
      else
        count_in(tenant)
        file_first(entry, id, score, words, queue, at)
      end
      added = added + 1
    end
  end
  for tenant in pairs(more) do count_in(tenant) end
  save_seq(queue)
  queue.from = nil
  count('published', added)
  count('repeated', #posted - added)
  drop_tickets(math.min(redis.call('LLEN', tickets) - MAX_TICKETS, 2 * #posted))
end

-- What an operation begins with: the queue, after what was published has been filed.
local function open(now)
  local queue = load_queue(now)
  file(queue, now)
  return queue
end
