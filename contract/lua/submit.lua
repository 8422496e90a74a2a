-- Enter a job, unless its id is known, the ledger is full, or Redis nearly is: the other scripts may go beyond its
-- limit, and this one leaves room for ending what was accepted.
-- KEYS job, queued, running  ARGV id, request, priority, max_open, most memory in percent
-- Returns created | known | conflict | full | memory, and the state, the number of open jobs or the percentage.
local known = redis.call('HMGET', KEYS[1], 'request', 'state')
if known[2] then
  return { known[1] == ARGV[2] and 'known' or 'conflict', known[2] }
end
local open = redis.call('ZCARD', KEYS[2]) + redis.call('ZCARD', KEYS[3])
if open >= tonumber(ARGV[4]) then
  return { 'full', tostring(open) }
end
-- Who may not ask is refused by Redis itself, at the limit.
local about = redis.pcall('INFO', 'memory')
if type(about) == 'string' then
  local limit = tonumber(about:match('maxmemory:(%d+)'))
  local used = tonumber(about:match('used_memory:(%d+)'))
  if limit > 0 and used * 100 >= limit * tonumber(ARGV[5]) then
    return { 'memory', tostring(math.floor(used * 100 / limit)) }
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'state', 'queued', 'request', ARGV[2], 'priority', ARGV[3],
  'submitted_ms', now, 'attempts', 0, 'token', 0, 'stage', '')
redis.call('ZADD', KEYS[2], now, ARGV[1])
return { 'created', 'queued' }
