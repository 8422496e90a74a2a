#!lua flags=allow-oom
-- Take a job that is queued, or whose worker has let its lease run out.
-- KEYS job, queued, running, returned  ARGV id, worker, lease_ms, max_attempts, nonce
-- Returns claimed | exhausted with token, attempts, request, submitted_ms, now, pictures; or the state; or unknown.
-- An exhausted job is handed out once more, to be ended rather than run.
-- First, whatever comes: who may not do this has changed nothing yet, and what has ended is announced no more.
redis.call('ZREM', KEYS[4], ARGV[1])
local job = redis.call('HMGET', KEYS[1], 'state', 'lease_until_ms', 'attempts', 'request', 'submitted_ms', 'pictures',
  'nonce', 'token', 'stage')
if not job[1] then
  return { 'unknown' }
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local outcome = 'claimed'
local attempts = tonumber(job[3])
local token = job[8]
if job[1] == 'running' and job[7] == ARGV[5] then
  -- Its holder asks again, because the first answer never arrived: that is no further attempt.
  outcome = job[9] == 'exhausted' and 'exhausted' or 'claimed'
elseif job[1] == 'queued' or (job[1] == 'running' and tonumber(job[2]) <= now) then
  if attempts >= tonumber(ARGV[4]) then
    outcome = 'exhausted'
  else
    attempts = redis.call('HINCRBY', KEYS[1], 'attempts', 1)
  end
  token = redis.call('HINCRBY', KEYS[1], 'token', 1)
  redis.call('HSET', KEYS[1], 'state', 'running', 'worker', ARGV[2], 'nonce', ARGV[5],
    'stage', outcome == 'exhausted' and outcome or 'read')
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  return { job[1] }
end
local lease_until = now + tonumber(ARGV[3])
redis.call('HSET', KEYS[1], 'lease_until_ms', lease_until)
redis.call('ZADD', KEYS[3], lease_until, ARGV[1])
return { outcome, tostring(token), tostring(attempts), job[4], job[5], tostring(now), job[6] or '' }
