#!lua flags=allow-oom
-- Give a claimed job back to the queue. It has waited once already, so it is to be announced as urgent.
-- KEYS job, queued, running, returned  ARGV id, token, pause_ms, counted (1: the attempt counts; 0: as if it had not been taken)
-- Returns released | lost.
local job = redis.call('HMGET', KEYS[1], 'state', 'token')
if job[1] ~= 'running' or job[2] ~= ARGV[2] then
  return 'lost'
end
local time = redis.call('TIME')
local due = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3])
redis.call('ZADD', KEYS[4], due, ARGV[1])
if ARGV[4] == '0' then
  redis.call('HINCRBY', KEYS[1], 'attempts', -1)
end
redis.call('HSET', KEYS[1], 'state', 'queued', 'stage', '')
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[2], due, ARGV[1])
return 'released'
