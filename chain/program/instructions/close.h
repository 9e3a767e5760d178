// The depositor's way out, which nobody can bar: start, wait for the grace, take the rest.
#pragma once
#include "../checks.h"

// Accounts: vault (writable), depositor (signer).  After this, the depositor has the rest back once the grace is over.
NOINLINE u64 start_close(void) {
  u64 error;
  if (C->count < 2) return E_ACCOUNTS;
  Vault *v = vault_of_depositor(&error);
  if (!v) return error;
  if (v->close_at) return E_STATE;
  if (!clock_read()) return E_CLOCK;
  v->close_at = C->clock.unix_timestamp + v->grace_s;
  return 0;
}

// Accounts: vault (writable), depositor (signer).  The next start_close waits for a whole grace again.
NOINLINE u64 cancel_close(void) {
  u64 error;
  if (C->count < 2) return E_ACCOUNTS;
  Vault *v = vault_of_depositor(&error);
  if (!v) return error;
  if (!v->close_at) return E_STATE;
  v->close_at = 0;
  return 0;
}

// The operator's admin signed too: the grace need not be waited for. Accounts 5 and 6, when given: config, admin (signer).
INLINE int operator_agrees(const Vault *v) {
  Account *a = C->accounts;
  Config *config = C->count >= 7 ? as_config(&a[5]) : 0;
  return config && same_key(a[5].key, v->config) && a[6].is_signer && same_key(a[6].key, config->admin);
}

// Accounts: vault, depositor (signer), token account, depositor's token account, token program [, config, admin (signer)].
// Pays the whole balance and all rent to the depositor. The salt window is always waited for.
NOINLINE u64 finish_close(void) {
  Account *a = C->accounts, *vault = &a[0], *depositor = &a[1], *tokens = &a[2], *to = &a[3];
  u64 error;
  if (C->count < 5) return E_ACCOUNTS;
  Vault *v = vault_of_depositor(&error);
  if (!v) return error;
  if (!same_key(tokens->key, v->token_account) || !same_key(a[4].key, TOKEN_PROGRAM)) return E_WRONG_ACCOUNT;
  if (!is_token_account(tokens) || !is_token_account_of(to, v->depositor, v->mint)) return E_TOKEN_ACCOUNT;
  if (!clock_read()) return E_CLOCK;
  if (C->clock.slot <= v->salt + SALT_WINDOW_SLOTS) return E_TOO_EARLY;
  if (!operator_agrees(v)) {
    if (!v->close_at) return E_STATE;
    if (C->clock.unix_timestamp < v->close_at) return E_TOO_EARLY;
  }
  sign_as(v);
  u64 failed = transfer(tokens->key, to->key, vault->key, token_amount(tokens));
  if (!failed) failed = close_token_account(tokens->key, depositor->key, vault->key);
  if (!failed) destroy(vault, depositor);
  return failed;
}

// Tokens that were sent to the address of a vault that does not exist (closed, or never opened) go back to its depositor.
// Accounts: vault address, depositor (signer), token account, depositor's token account, config, token program.
// Data: bump | salt u64
NOINLINE u64 rescue(void) {
  Account *a = C->accounts, *vault = &a[0], *depositor = &a[1], *tokens = &a[2], *to = &a[3], *config = &a[4];
  if (C->count < 6) return E_ACCOUNTS;
  if (C->data_length != 9) return E_DATA;
  if (!depositor->is_signer) return E_SIGNER;
  if (vault->data_length != 0) return E_STATE; // a living vault is left by closing it
  if (!same_key(a[5].key, TOKEN_PROGRAM)) return E_WRONG_ACCOUNT;
  if (!is_token_account(tokens) || !same_key(token_owner(tokens), vault->key)) return E_TOKEN_ACCOUNT;
  if (!is_token_account_of(to, depositor->key, token_mint(tokens))) return E_TOKEN_ACCOUNT;
  use_vault_seeds(depositor->key, config->key, C->data + 1, C->data);
  if (!is_derived(vault->key, 5, C->program_id)) return E_ADDRESS;
  u64 failed = transfer(tokens->key, to->key, vault->key, token_amount(tokens));
  return failed ? failed : close_token_account(tokens->key, depositor->key, vault->key);
}
