// Money leaves a client's vault: only with the client's signed cap and the operator's order over exactly these payees and amounts.
#pragma once
#include "open.h"

// Where the arguments of a capture lie in the instruction's data.
typedef struct {
  u8 cap_index, order_index;
  u64 payees;
  const u8 *expected_settled, *amounts, *root;
} Order;

INLINE int parse_order(Order *o) {
  const u8 *d = C->data;
  if (C->data_length < 2 + 8 + 1 + 8 + 32) return 0;
  *o = (Order){d[0], d[1], d[10], d + 2, d + 11, d + 11 + 8 * (u64)d[10]};
  return o->payees >= 1 && o->payees <= MAX_PAYEES && C->data_length == 2 + 8 + 1 + 8 * o->payees + 32;
}
INLINE u64 amount_of(const Order *o, u64 payee) { return read_u64(o->amounts + 8 * payee); }

// The cap message: domain 16 | chain id 32 | vault 32 | cap u64 | valid until i64
INLINE const u8 *find_cap(const Vault *v, const Account *vault, const Account *sysvar, u8 index) {
  const u8 *cap = signed_message(sysvar, index, current_signer(v), 96);
  int ours = cap && equal(cap, CAP_DOMAIN, 16) && same_key(cap + 16, v->chain_id) && same_key(cap + 48, vault->key);
  return ours ? cap : 0;
}

// Whether the operator ordered exactly these arguments: its capture key signed this transaction, or an Ed25519 message over
// their hash, which anybody may submit: domain 16 | chain id 32 | vault 32 | sha256(expected settled, count, amounts, keys, root)
NOINLINE int is_ordered(const Config *config, const Vault *v, const Order *o) {
  Account *a = C->accounts, *vault = &a[0], *sysvar = &a[3], *order_signer = &a[5];
  if (o->order_index == 0xff) return order_signer->is_signer && same_key(order_signer->key, config->capture_key);
  const u8 *message = signed_message(sysvar, o->order_index, config->capture_key, 112);
  if (!message || !equal(message, ORDER_DOMAIN, 16)) return 0;
  if (!same_key(message + 16, v->chain_id) || !same_key(message + 48, vault->key)) return 0;
  u8 *keys = C->scratch;
  for (u64 i = 0; i < o->payees; i++) copy(keys + 32 * i, a[6 + i].key, 32);
  C->hash_parts[0] = (Slice){o->expected_settled, 8 + 1 + 8 * o->payees};
  C->hash_parts[1] = (Slice){keys, 32 * o->payees};
  C->hash_parts[2] = (Slice){o->root, 32};
  sol_sha256(C->hash_parts, 3, C->digest);
  return same_key(message + 80, C->digest);
}

// A payee that cannot be paid must not block the others: it is left out, and named in the return data.
INLINE int can_be_paid(const Account *payee, const Vault *v) {
  return is_token_account(payee) && same_key(token_mint(payee), v->mint) && !same_key(payee->key, v->token_account);
}
INLINE int is_skipped(const u8 *skipped, u64 payee) { return skipped[payee / 8] >> (payee % 8) & 1; }

// The sum over all payees that can be paid; the others are marked in `skipped`. Error in *error.
INLINE u64 sum_payable(const Order *o, const Vault *v, u8 *skipped, u64 *error) {
  u64 sum = 0;
  for (u64 i = 0; i < o->payees; i++) {
    u64 amount = amount_of(o, i);
    if (!can_be_paid(&C->accounts[6 + i], v)) {
      skipped[i / 8] |= 1 << (i % 8);
      continue;
    }
    if (sum + amount < sum) *error = E_OVERFLOW;
    sum += amount;
  }
  if (!*error && sum == 0) *error = E_NOTHING_PAYABLE;
  return sum;
}

// Accounts: vault, its token account, config, instructions sysvar, token program, order signer, payees...
// Data: cap instruction u8 | order instruction u8 | expected_settled u64 | count u8 | amounts u64... | root
NOINLINE u64 capture(void) {
  Account *a = C->accounts, *vault = &a[0], *tokens = &a[1], *sysvar = &a[3];
  Order o;
  u64 error = 0;
  if (!parse_order(&o)) return E_DATA;
  if (C->count != 6 + o.payees) return E_ACCOUNTS;
  Vault *v = as_vault(vault);
  Config *config = as_config(&a[2]);
  if (!v || !config) return E_NOT_OURS;
  if (v->kind != KIND_CLIENT) return E_KIND;
  if (!same_key(tokens->key, v->token_account) || !same_key(a[2].key, v->config)) return E_WRONG_ACCOUNT;
  if (!same_key(sysvar->key, INSTRUCTIONS_SYSVAR) || !same_key(a[4].key, TOKEN_PROGRAM)) return E_WRONG_ACCOUNT;
  if (!is_token_account(tokens)) return E_TOKEN_ACCOUNT; // frozen by the mint's authority
  if (!clock_read()) return E_CLOCK;

  const u8 *cap = find_cap(v, vault, sysvar, o.cap_index);
  if (!cap) return E_CAP_SIGNATURE;
  if (C->clock.unix_timestamp > (i64)read_u64(cap + 88)) return E_CAP_EXPIRED;
  if (!is_ordered(config, v, &o)) return E_ORDER;
  if (read_u64(o.expected_settled) != v->settled) return E_STALE;

  u8 skipped[2] = {0, 0};
  u64 sum = sum_payable(&o, v, skipped, &error);
  if (error) return error;
  if (v->settled + sum < sum) return E_OVERFLOW;
  if (v->settled + sum > read_u64(cap + 80)) return E_OVER_CAP;
  if (sum > token_amount(tokens)) return E_OVER_BALANCE;

  // All checks are done: state first, money after.
  record_payment(v, sum, o.root);
  sign_as(v);
  for (u64 i = 0; i < o.payees; i++) {
    if (is_skipped(skipped, i)) continue;
    u64 failed = transfer(tokens->key, a[6 + i].key, vault->key, amount_of(&o, i));
    if (failed) return failed;
  }
  copy(C->scratch, skipped, 2);
  sol_set_return_data(C->scratch, 2);
  return 0;
}
