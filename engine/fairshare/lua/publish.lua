-- publish: adds messages, each at most once by its id.
--
-- They go to the inbox, in one write each; the operation that comes next files them. Only the publish that fills the
-- inbox files them itself.
--
-- ARGV: [1] time or ''
--       then each message as one text: "1" (the version of this form), again ('1' when the publisher tries again because
--       it did not see the first reply, else ''), id, tenant, flow, priority (0 = first), nonce (of this publish, the
--       same over its tries), lane ("version weight cap rate burst", '-' = unsaid; or ''), joined by \31, then \n, then
--       the payload
-- Returns how many messages are in the inbox afterwards.
local at, posted = exact(clock(ARGV[1])), 0
for i = 2, #ARGV do posted = redis.call('RPUSH', inbox, at .. SEP .. ARGV[i]) end
ring(#ARGV - 1)
if posted < INBOX then return posted end
-- rarely:
open(clock(ARGV[1]))
return 0
