#!lua flags=allow-oom
-- Take along jobs that wait in the queues, with their messages: what a busy engine does instead of waiting for each.
-- KEYS urgent and routine queue (Celery's lists), queued, running, returned
-- ARGV prefix of a job's key, task, worker, lease_ms, count, nonce, most messages to look at
-- Returns for each job: id, token, attempts, request, submitted_ms, now.
-- It stops at the first message that is not for it: of a job that has been tried before, has lost its worker or is to be
-- cancelled, which is better run alone, or of something else altogether. A message whose job has ended, or is in good
-- hands, leads nowhere and goes.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease_until = now + tonumber(ARGV[4])
local taken = {}
local looks = tonumber(ARGV[7])
for queue = 1, 2 do
  while #taken < tonumber(ARGV[5]) and looks > 0 do
    looks = looks - 1
    local message = redis.call('LINDEX', KEYS[queue], -1)
    if not message then
      break
    end
    local readable, content = pcall(cjson.decode, message)
    local headers = readable and type(content) == 'table' and content.headers
    if type(headers) ~= 'table' or headers.task ~= ARGV[2] or type(headers.id) ~= 'string' then
      return taken
    end
    local key = ARGV[1] .. headers.id
    local job = redis.call('HMGET', key, 'state', 'attempts', 'cancel_requested', 'request', 'submitted_ms',
      'lease_until_ms')
    if job[1] == 'running' and tonumber(job[6]) <= now then
      return taken
    end
    if job[1] == 'queued' and (job[2] ~= '0' or job[3]) then
      return taken
    end
    -- Before anything is changed: a worker that may not do this must not leave a job half taken.
    redis.call('ZREM', KEYS[5], headers.id)
    if job[1] == 'queued' then
      local token = redis.call('HINCRBY', key, 'token', 1)
      redis.call('HSET', key, 'state', 'running', 'worker', ARGV[3], 'stage', 'read', 'nonce', ARGV[6],
        'attempts', 1, 'lease_until_ms', lease_until)
      redis.call('ZREM', KEYS[3], headers.id)
      redis.call('ZADD', KEYS[4], lease_until, headers.id)
      taken[#taken + 1] = { headers.id, tostring(token), '1', job[4], job[5], tostring(now) }
    end
    redis.call('RPOP', KEYS[queue])
  end
end
return taken
