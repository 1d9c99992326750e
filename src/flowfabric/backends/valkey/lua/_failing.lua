-- Failing the running attempt, by its worker or by its time limit.

-- Fail the attempt and note in the history what follows; true when that is a retry.
local function fail_with(K, r, now, class, category, message, actor)
  local retried = event_of(r, 'released', now, 'failed_retry_scheduled', nil, actor)
  local ended = event_of(r, 'released', now, 'failed_terminal', 'failed', actor)
  local retrying = fail_attempt(K, r, class, category, message, now)
  happened(r, retrying and retried or ended)
  return retrying
end
