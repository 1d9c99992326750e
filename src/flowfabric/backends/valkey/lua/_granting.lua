-- Which kind of grant an execution needs, and the refusals of one that asks for another.

local function purpose_of(r)
  if S.phase[r.vector] == 'active' then
    return 'reclaim'
  end
  return S.attempt[r.vector] == 'attempt_interrupted' and 'resume' or 'claim'
end

-- The code of a refusal, or nil.
local function wrong_purpose(asked, needed)
  if not asked or asked == needed then
    return nil
  end
  if asked == 'reclaim' then
    return 'execution_not_reclaimable'
  end
  if needed == 'resume' then
    return 'use_claim_resumed_execution'
  end
  if asked == 'resume' then
    return 'not_a_resumed_execution'
  end
  return 'execution_not_eligible', 'the execution lost its lease: use a grant with purpose `reclaim`'
end
