// Torg's vault: a client's deposit that an operator may pay out of, never beyond what the client's key has signed, and that the
// client always gets back after a grace period. SPEC.md states every account, byte, error and invariant.
//
// abi.h     what the runtime passes in and offers         state.h   accounts, errors, constants
// checks.h  what must hold before an account is believed, and calls into other programs
// instructions/  one function per instruction, each on one screen: checks first, then state, then money
#include "instructions/capture.h"
#include "instructions/close.h"
#include "instructions/config.h"
#include "instructions/open.h"
#include "instructions/slash.h"

u64 entrypoint(u8 *input) {
  u8 *data, *program_id;
  i64 count = parse_input(input, C->accounts, &data, &C->data_length, &program_id);
  if (count < 0) return E_ACCOUNTS;
  if (C->data_length == 0) return E_DATA;
  C->count = count;
  C->data = data + 1;
  C->data_length -= 1;
  C->program_id = program_id;
  switch (data[0]) {
    case 0: return init_config();
    case 1: return set_capture_key();
    case 2: return open_vault();
    case 3: return capture();
    case 4: return start_close();
    case 5: return cancel_close();
    case 6: return finish_close();
    case 7: return rotate_signer();
    case 8: return rescue();
    case 9: return propose_slash();
    case 10: return execute_slash();
    case 11: return cancel_slash();
  }
  return E_DATA;
}
