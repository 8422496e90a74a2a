-- Take a job that is queued, or whose worker has let its lease run out.
-- KEYS job, queued, running  ARGV id, worker, lease_ms, max_attempts
-- Returns claimed | exhausted with token, attempts, request, submitted_ms, now; or the state; or unknown.
-- An exhausted job is handed out once more, to be ended rather than run.
local job = redis.call('HMGET', KEYS[1], 'state', 'lease_until_ms', 'attempts', 'request', 'submitted_ms')
if not job[1] then
  return { 'unknown' }
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if job[1] ~= 'queued' and not (job[1] == 'running' and tonumber(job[2]) <= now) then
  return { job[1] }
end
local outcome = 'claimed'
local attempts = tonumber(job[3])
if attempts >= tonumber(ARGV[4]) then
  outcome = 'exhausted'
else
  attempts = redis.call('HINCRBY', KEYS[1], 'attempts', 1)
end
local token = redis.call('HINCRBY', KEYS[1], 'token', 1)
local lease_until = now + tonumber(ARGV[3])
redis.call('HSET', KEYS[1], 'state', 'running', 'worker', ARGV[2], 'lease_until_ms', lease_until, 'stage', 'claimed')
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], lease_until, ARGV[1])
return { outcome, tostring(token), tostring(attempts), job[4], job[5], tostring(now) }
