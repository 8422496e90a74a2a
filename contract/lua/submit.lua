-- Enter a job, unless its id is known or the ledger is full.
-- KEYS job, queued, running  ARGV id, request, priority, max_open
-- Returns created | known | conflict | full, and the state or the number of open jobs.
local known = redis.call('HMGET', KEYS[1], 'request', 'state')
if known[2] then
  return { known[1] == ARGV[2] and 'known' or 'conflict', known[2] }
end
local open = redis.call('ZCARD', KEYS[2]) + redis.call('ZCARD', KEYS[3])
if open >= tonumber(ARGV[4]) then
  return { 'full', tostring(open) }
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'state', 'queued', 'request', ARGV[2], 'priority', ARGV[3],
  'submitted_ms', now, 'attempts', 0, 'token', 0, 'stage', '')
redis.call('ZADD', KEYS[2], now, ARGV[1])
return { 'created', 'queued' }
