#!lua flags=allow-oom
-- Extend a lease and note the stage. KEYS job, running  ARGV id, token, lease_ms, stage ('' leaves it)
-- Returns ok | cancelled | lost.
local job = redis.call('HMGET', KEYS[1], 'state', 'token', 'cancel_requested')
if job[1] ~= 'running' or job[2] ~= ARGV[2] then
  return 'lost'
end
local time = redis.call('TIME')
local lease_until = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3])
redis.call('HSET', KEYS[1], 'lease_until_ms', lease_until)
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], 'stage', ARGV[4])
end
redis.call('ZADD', KEYS[2], lease_until, ARGV[1])
return job[3] and 'cancelled' or 'ok'
