// A node's collateral: the operator can take of it in two steps, a day apart, and only for a client. It can never pay itself.
#pragma once
#include "../checks.h"

// The collateral of account 0 if accounts 1 and 2 are its operator's config and admin, who signed; else 0 with the error.
NOINLINE Collateral *collateral_of_admin(u64 *error) {
  Account *a = C->accounts;
  Vault *v = as_vault(&a[0]);
  Config *config = as_config(&a[1]);
  *error = !v || !config ? E_NOT_OURS
           : v->kind != KIND_COLLATERAL ? E_KIND
           : !same_key(a[1].key, v->config) ? E_WRONG_ACCOUNT
           : !a[2].is_signer || !same_key(a[2].key, config->admin) ? E_SIGNER : 0;
  return *error ? 0 : (Collateral *)v;
}

NOINLINE int is_operators_own(const Config *config, const u8 *wallet) {
  return same_key(wallet, config->admin) || same_key(wallet, config->capture_key) || same_key(wallet, config->fee_owner);
}

// Accounts: collateral (writable), config, admin (signer), its token account, client vault.  Data: amount u64 | evidence root
// The client's wallet is noted, not one token account of it: no account that is closed in the meantime bars the payment.
NOINLINE u64 propose_slash(void) {
  Account *a = C->accounts, *tokens = &a[3];
  u64 error;
  if (C->count < 5) return E_ACCOUNTS;
  if (C->data_length != 8 + 32) return E_DATA;
  Collateral *c = collateral_of_admin(&error);
  if (!c) return error;
  Vault *client = as_vault(&a[4]);
  if (!client) return E_NOT_OURS;
  if (!same_key(tokens->key, c->vault.token_account)) return E_WRONG_ACCOUNT;
  if (client->kind != KIND_CLIENT || !same_key(client->config, c->vault.config)) return E_BENEFICIARY;
  if (is_operators_own(as_config(&a[1]), client->depositor)) return E_BENEFICIARY;
  if (c->slash.amount) return E_STATE; // one at a time: cancel the old one first
  u64 amount = read_u64(C->data);
  if (amount == 0) return E_NOTHING_PAYABLE;
  if (amount > token_amount(tokens)) return E_OVER_BALANCE;
  if (!clock_read()) return E_CLOCK;
  i64 execute_at = C->clock.unix_timestamp + DISPUTE_DELAY_S;
  if (c->vault.close_at && execute_at + SLASH_MARGIN_S > c->vault.close_at) return E_TOO_LATE;
  c->slash.amount = amount;
  c->slash.execute_at = execute_at;
  copy(c->slash.evidence_root, C->data + 8, 32);
  copy(c->slash.beneficiary, client->depositor, 32);
  return 0;
}

// Accounts: collateral (writable), config, admin (signer), its token account, beneficiary's token account, token program.
NOINLINE u64 execute_slash(void) {
  Account *a = C->accounts, *tokens = &a[3], *to = &a[4];
  u64 error;
  if (C->count < 6) return E_ACCOUNTS;
  Collateral *c = collateral_of_admin(&error);
  if (!c) return error;
  Vault *v = &c->vault;
  u64 amount = c->slash.amount;
  if (amount == 0) return E_STATE;
  if (!same_key(tokens->key, v->token_account) || !same_key(a[5].key, TOKEN_PROGRAM)) return E_WRONG_ACCOUNT;
  if (!is_token_account(tokens) || !is_token_account_of(to, c->slash.beneficiary, v->mint)) return E_TOKEN_ACCOUNT;
  if (is_operators_own(as_config(&a[1]), c->slash.beneficiary)) return E_BENEFICIARY; // a key that was rotated to since
  if (!clock_read()) return E_CLOCK;
  if (C->clock.unix_timestamp < c->slash.execute_at) return E_TOO_EARLY;
  if (C->clock.unix_timestamp > c->slash.execute_at + DISPUTE_DELAY_S) return E_TOO_LATE;
  if (amount > token_amount(tokens)) return E_OVER_BALANCE;
  if (v->settled + amount < amount) return E_OVERFLOW;

  record_payment(v, amount, c->slash.evidence_root);
  c->slash = (Slash){0};
  sign_as(v);
  return transfer(tokens->key, to->key, a[0].key, amount);
}

// Accounts: collateral (writable), config, admin (signer).
NOINLINE u64 cancel_slash(void) {
  u64 error;
  if (C->count < 3) return E_ACCOUNTS;
  Collateral *c = collateral_of_admin(&error);
  if (!c) return error;
  if (c->slash.amount == 0) return E_STATE;
  c->slash = (Slash){0};
  return 0;
}
