// Torg's vault: a client's deposit that an operator may pay out of, never beyond what the client's key has signed, and that the
// client always gets back after a grace period. SPEC.md states every account, byte, error and invariant.
#include "checks.h"

// Accounts: admin (signer, pays), config, system program.  Data: bump | rent u64 | capture key | fee owner
NOINLINE u64 init_config(void) {
  Account *a = C->accounts;
  if (C->count < 3) return E_ACCOUNTS;
  if (C->data_length != 1 + 8 + 32 + 32) return E_DATA;
  if (!a[0].is_signer) return E_SIGNER;
  C->seeds[0] = (Slice){CONFIG_SEED, 8};
  C->seeds[1] = (Slice){a[0].key, 32};
  C->seeds[2] = (Slice){C->data, 1};
  C->signer_seeds = (SignerSeeds){C->seeds, 3};
  u64 failed = create_account(&a[0], &a[1], read_u64(C->data + 1), sizeof(Config)); // fails unless a[1] is the derived address
  if (failed) return failed;
  Config *config = (Config *)a[1].data;
  config->tag = TAG_CONFIG;
  config->bump = C->data[0];
  copy(config->admin, a[0].key, 32);
  copy(config->capture_key, C->data + 9, 32);
  copy(config->fee_owner, C->data + 41, 32);
  return 0;
}

// Accounts: config (writable), admin (signer).  Data: new capture key
NOINLINE u64 set_capture_key(void) {
  Account *a = C->accounts;
  if (C->count < 2) return E_ACCOUNTS;
  if (C->data_length != 32) return E_DATA;
  Config *config = as_config(&a[0]);
  if (!config) return E_NOT_OURS;
  if (!a[1].is_signer || !same_key(a[1].key, config->admin)) return E_SIGNER;
  copy(config->capture_key, C->data, 32);
  return 0;
}

// Accounts: depositor (signer, pays), vault, its token account, config, system program.
// Data: kind | bump | token account bump | grace u32 | salt u64 | rent u64 | signer | chain id
NOINLINE u64 open_vault(void) {
  Account *a = C->accounts;
  const u8 *d = C->data;
  if (C->count < 5) return E_ACCOUNTS;
  if (C->data_length != 3 + 4 + 8 + 8 + 32 + 32) return E_DATA;
  if (!a[0].is_signer) return E_SIGNER;
  if (!as_config(&a[3])) return E_NOT_OURS;
  if (d[0] != KIND_CLIENT) return E_KIND;
  u32 grace_s = d[3] | d[4] << 8 | d[5] << 16 | (u32)d[6] << 24;
  if (grace_s < MINIMUM_GRACE_S) return E_GRACE;
  // The salt is a recent slot, and nothing closes inside that window: an address is never used twice, so a cap that was
  // signed for a closed vault never lives again.
  u64 salt = read_u64(d + 7);
  if (!clock_read()) return E_CLOCK;
  if (salt > C->clock.slot || C->clock.slot - salt > SALT_WINDOW_SLOTS) return E_SALT;

  if (!is_token_account(&a[2]) || !same_key(a[2].data + 32, a[1].key) || !has_no_second_authority(&a[2])) return E_TOKEN_ACCOUNT;
  C->seeds[0] = (Slice){a[1].key, 32};
  C->seeds[1] = (Slice){TOKEN_PROGRAM, 32};
  C->seeds[2] = (Slice){a[2].data, 32};
  C->seeds[3] = (Slice){d + 2, 1};
  if (sol_create_program_address(C->seeds, 4, ATA_PROGRAM, C->address) || !same_key(C->address, a[2].key)) return E_ADDRESS;

  use_vault_seeds(a[0].key, a[3].key, d + 7, d + 1);
  u64 failed = create_account(&a[0], &a[1], read_u64(d + 15), sizeof(Vault)); // fails unless a[1] is the derived address
  if (failed) return failed;
  Vault *v = (Vault *)a[1].data;
  v->tag = TAG_VAULT;
  v->bump = d[1];
  v->kind = d[0];
  v->grace_s = grace_s;
  v->salt = salt;
  copy(v->depositor, a[0].key, 32);
  copy(v->config, a[3].key, 32);
  copy(v->mint, a[2].data, 32);
  copy(v->token_account, a[2].key, 32);
  copy(v->signer, d + 23, 32);
  copy(v->chain_id, d + 55, 32);
  return 0;
}

// The key whose caps count now: a rotation takes effect after the vault's grace, so that what was earned under the old key can
// still be captured.
INLINE const u8 *current_signer(const Vault *v) {
  return v->next_signer_at && C->clock.unix_timestamp >= v->next_signer_at ? v->next_signer : v->signer;
}

// Whether the operator ordered exactly these arguments: its capture key signed this transaction (account 5), or, when
// `order_index` is not 0xff, an Ed25519 message over their hash, which anybody may submit.
INLINE int is_ordered(const Config *config, const Vault *v, u8 order_index, u64 payees) {
  Account *a = C->accounts;
  if (order_index == 0xff) return a[5].is_signer && same_key(a[5].key, config->capture_key);
  const u8 *message = signed_message(&a[3], order_index, config->capture_key, 112);
  if (!message || !equal(message, ORDER_DOMAIN, 16)) return 0;
  if (!same_key(message + 16, v->chain_id) || !same_key(message + 48, a[0].key)) return 0;
  // expected_settled | count | amounts | payee keys | root; payee keys are gathered in a row behind the accounts' own memory
  u8 *keys = C->scratch;
  for (u64 i = 0; i < payees; i++) copy(keys + 32 * i, a[6 + i].key, 32);
  C->hash_parts[0] = (Slice){C->data + 2, 8 + 1 + 8 * payees};
  C->hash_parts[1] = (Slice){keys, 32 * payees};
  C->hash_parts[2] = (Slice){C->data + 2 + 9 + 8 * payees, 32};
  sol_sha256(C->hash_parts, 3, C->digest);
  return same_key(message + 80, C->digest);
}

// A payee that cannot be paid must not block the others: it is left out, and named in the return data.
INLINE int can_be_paid(const Account *payee, const Vault *v) {
  return is_token_account(payee) && same_key(payee->data, v->mint) && !same_key(payee->key, v->token_account);
}

// Accounts: vault, its token account, config, instructions sysvar, token program, order signer, payees...
// Data: cap instruction u8 | order instruction u8 | expected_settled u64 | count u8 | amounts u64... | root
NOINLINE u64 capture(void) {
  Account *a = C->accounts;
  const u8 *d = C->data;
  if (C->data_length < 2 + 8 + 1 + 8 + 32) return E_DATA;
  u64 payees = d[10];
  if (payees == 0 || payees > 16 || C->data_length != 2 + 8 + 1 + 8 * payees + 32) return E_DATA;
  if (C->count != 6 + payees) return E_ACCOUNTS;
  Vault *v = as_vault(&a[0]);
  Config *config = as_config(&a[2]);
  if (!v || !config) return E_NOT_OURS;
  if (!same_key(a[1].key, v->token_account) || !same_key(a[2].key, v->config)) return E_WRONG_ACCOUNT;
  if (!same_key(a[3].key, INSTRUCTIONS_SYSVAR) || !same_key(a[4].key, TOKEN_PROGRAM)) return E_WRONG_ACCOUNT;
  if (!clock_read()) return E_CLOCK;

  const u8 *cap = signed_message(&a[3], d[0], current_signer(v), 96);
  if (!cap || !equal(cap, CAP_DOMAIN, 16) || !same_key(cap + 16, v->chain_id) || !same_key(cap + 48, a[0].key)) return E_CAP_SIGNATURE;
  if (C->clock.unix_timestamp > (i64)read_u64(cap + 88)) return E_CAP_EXPIRED;
  if (!is_ordered(config, v, d[1], payees)) return E_ORDER;
  if (read_u64(d + 2) != v->settled) return E_STALE;

  u64 sum = 0;
  u8 skipped[2] = {0, 0};
  for (u64 i = 0; i < payees; i++) {
    u64 amount = read_u64(d + 11 + 8 * i);
    if (!can_be_paid(&a[6 + i], v)) {
      skipped[i / 8] |= 1 << (i % 8);
      continue;
    }
    if (sum + amount < sum) return E_OVERFLOW;
    sum += amount;
  }
  if (sum == 0) return E_NOTHING_PAYABLE;
  if (v->settled + sum < sum) return E_OVERFLOW;
  if (v->settled + sum > read_u64(cap + 80)) return E_OVER_CAP;
  if (sum > token_amount(&a[1])) return E_OVER_BALANCE;

  // All checks are done: state first, money after.
  v->settled += sum;
  v->captures += 1;
  C->hash_parts[0] = (Slice){v->roots, 32};
  C->hash_parts[1] = (Slice){d + 11 + 8 * payees, 32};
  sol_sha256(C->hash_parts, 2, C->digest);
  copy(v->roots, C->digest, 32);
  sign_as(v);
  for (u64 i = 0; i < payees; i++) {
    if (skipped[i / 8] >> (i % 8) & 1) continue;
    u64 failed = transfer(a[1].key, a[6 + i].key, a[0].key, read_u64(d + 11 + 8 * i));
    if (failed) return failed;
  }
  C->scratch[0] = skipped[0];
  C->scratch[1] = skipped[1];
  sol_set_return_data(C->scratch, 2);
  return 0;
}

// The vault of account 0, if account 1 is its depositor and signed; else 0 with the error in *error.
INLINE Vault *vault_of_signer(u64 *error) {
  Account *a = C->accounts;
  Vault *v = as_vault(&a[0]);
  *error = !v ? E_NOT_OURS : !a[1].is_signer || !same_key(a[1].key, v->depositor) ? E_SIGNER : 0;
  return *error ? 0 : v;
}

// Accounts: vault (writable), depositor (signer).  After this, the depositor has the rest back once the grace is over.
NOINLINE u64 start_close(void) {
  u64 error;
  if (C->count < 2) return E_ACCOUNTS;
  Vault *v = vault_of_signer(&error);
  if (!v) return error;
  if (v->close_at) return E_STATE;
  if (!clock_read()) return E_CLOCK;
  v->close_at = C->clock.unix_timestamp + v->grace_s;
  return 0;
}

// Accounts: vault (writable), depositor (signer).
NOINLINE u64 cancel_close(void) {
  u64 error;
  if (C->count < 2) return E_ACCOUNTS;
  Vault *v = vault_of_signer(&error);
  if (!v) return error;
  if (!v->close_at) return E_STATE;
  v->close_at = 0;
  return 0;
}

// Accounts: vault, depositor (signer), token account, depositor's token account, token program [, config, admin (signer)].
// With the admin's signature the grace need not be waited for; the salt window always.
NOINLINE u64 finish_close(void) {
  Account *a = C->accounts;
  u64 error;
  if (C->count < 5) return E_ACCOUNTS;
  Vault *v = vault_of_signer(&error);
  if (!v) return error;
  if (!same_key(a[2].key, v->token_account) || !same_key(a[4].key, TOKEN_PROGRAM)) return E_WRONG_ACCOUNT;
  if (!is_token_account(&a[3]) || !same_key(a[3].data, v->mint) || !same_key(a[3].data + 32, v->depositor)) return E_TOKEN_ACCOUNT;
  if (!clock_read()) return E_CLOCK;
  if (C->clock.slot <= v->salt + SALT_WINDOW_SLOTS) return E_TOO_EARLY;
  Config *config = C->count >= 7 ? as_config(&a[5]) : 0;
  int agreed = config && same_key(a[5].key, v->config) && a[6].is_signer && same_key(a[6].key, config->admin);
  if (!agreed) {
    if (!v->close_at) return E_STATE;
    if (C->clock.unix_timestamp < v->close_at) return E_TOO_EARLY;
  }
  sign_as(v);
  u64 failed = transfer(a[2].key, a[3].key, a[0].key, token_amount(&a[2]));
  if (!failed) failed = close_token_account(a[2].key, a[1].key, a[0].key);
  if (failed) return failed;
  *a[1].lamports += *a[0].lamports;
  *a[0].lamports = 0;
  for (u64 i = 0; i < sizeof(Vault); i++) a[0].data[i] = 0;
  return 0;
}

// Accounts: vault (writable), depositor (signer).  Data: new signer. Effective after the grace.
NOINLINE u64 rotate_signer(void) {
  u64 error;
  if (C->count < 2) return E_ACCOUNTS;
  if (C->data_length != 32) return E_DATA;
  Vault *v = vault_of_signer(&error);
  if (!v) return error;
  if (!clock_read()) return E_CLOCK;
  copy(v->signer, current_signer(v), 32); // a rotation that is already in effect becomes the base of the next
  copy(v->next_signer, C->data, 32);
  v->next_signer_at = C->clock.unix_timestamp + v->grace_s;
  return 0;
}

// Tokens that were sent to the address of a vault that does not exist (closed, or never opened) go back to its depositor.
// Accounts: vault address, depositor (signer), token account, depositor's token account, config, token program.
// Data: bump | salt u64
NOINLINE u64 rescue(void) {
  Account *a = C->accounts;
  if (C->count < 6) return E_ACCOUNTS;
  if (C->data_length != 9) return E_DATA;
  if (!a[1].is_signer) return E_SIGNER;
  if (a[0].data_length != 0) return E_STATE; // a living vault is left by closing it
  if (!same_key(a[5].key, TOKEN_PROGRAM)) return E_WRONG_ACCOUNT;
  if (!is_token_account(&a[2]) || !same_key(a[2].data + 32, a[0].key)) return E_TOKEN_ACCOUNT;
  if (!is_token_account(&a[3]) || !same_key(a[3].data + 32, a[1].key)) return E_TOKEN_ACCOUNT;
  use_vault_seeds(a[1].key, a[4].key, C->data + 1, C->data);
  if (sol_create_program_address(C->seeds, 5, C->program_id, C->address) || !same_key(C->address, a[0].key)) return E_ADDRESS;
  u64 failed = transfer(a[2].key, a[3].key, a[0].key, token_amount(&a[2]));
  return failed ? failed : close_token_account(a[2].key, a[1].key, a[0].key);
}

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
    // 9, 10, 11: propose, execute and cancel a slash of collateral; reserved, refused
  }
  return E_DATA;
}
