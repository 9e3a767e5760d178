// A vault's beginning, and the key that signs its caps.
#pragma once
#include "../checks.h"

// The vault's token account is its associated one, and nobody else can move or close what is in it.
INLINE u64 check_vault_tokens(const Account *tokens, const u8 *vault, const u8 *bump) {
  if (!is_token_account(tokens) || !same_key(token_owner(tokens), vault) || !has_no_second_authority(tokens)) return E_TOKEN_ACCOUNT;
  C->seeds[0] = (Slice){vault, 32};
  C->seeds[1] = (Slice){TOKEN_PROGRAM, 32};
  C->seeds[2] = (Slice){token_mint(tokens), 32};
  C->seeds[3] = (Slice){bump, 1};
  return is_derived(tokens->key, 4, ATA_PROGRAM) ? 0 : E_ADDRESS;
}

// The salt is a recent slot, and nothing closes inside that window: an address is never used twice, so a cap that was signed
// for a closed vault never lives again.
INLINE int is_fresh(u64 salt) { return salt <= C->clock.slot && C->clock.slot - salt <= SALT_WINDOW_SLOTS; }

// A collateral stays at least as long as a slash that is proposed before its closing starts needs.
INLINE u32 minimum_grace_s(u8 kind) { return kind == KIND_COLLATERAL ? DISPUTE_DELAY_S + SLASH_MARGIN_S : MINIMUM_GRACE_S; }

// Accounts: depositor (signer, pays), vault, its token account, config, system program.
// Data: kind | bump | token account bump | grace u32 | salt u64 | rent u64 | signer | chain id
NOINLINE u64 open_vault(void) {
  Account *a = C->accounts, *depositor = &a[0], *target = &a[1], *tokens = &a[2], *config = &a[3];
  const u8 *kind = C->data, *bump = C->data + 1, *salt = C->data + 7, *signer = C->data + 23, *chain_id = C->data + 55;
  if (C->count < 5) return E_ACCOUNTS;
  if (C->data_length != 3 + 4 + 8 + 8 + 32 + 32) return E_DATA;
  if (!depositor->is_signer) return E_SIGNER;
  if (!as_config(config)) return E_NOT_OURS;
  if (*kind != KIND_CLIENT && *kind != KIND_COLLATERAL) return E_KIND;
  u32 grace_s = read_u32(C->data + 3);
  if (grace_s < minimum_grace_s(*kind) || grace_s > MAXIMUM_GRACE_S) return E_GRACE;
  if (!clock_read()) return E_CLOCK;
  if (!is_fresh(read_u64(salt))) return E_SALT;
  u64 failed = check_vault_tokens(tokens, target->key, C->data + 2);
  if (failed) return failed;

  use_vault_seeds(depositor->key, config->key, salt, bump);
  failed = create_account(depositor, target, read_u64(C->data + 15), size_of_kind(*kind));
  if (failed) return failed;
  Vault *v = (Vault *)target->data;
  v->tag = TAG_VAULT;
  v->bump = *bump;
  v->kind = *kind;
  v->grace_s = grace_s;
  v->salt = read_u64(salt);
  copy(v->depositor, depositor->key, 32);
  copy(v->config, config->key, 32);
  copy(v->mint, token_mint(tokens), 32);
  copy(v->token_account, tokens->key, 32);
  copy(v->signer, signer, 32);
  copy(v->chain_id, chain_id, 32);
  return 0;
}

// The key whose caps count now: a rotation takes effect after the vault's grace, so that what was earned under the old key can
// still be captured.
INLINE const u8 *current_signer(const Vault *v) {
  return v->next_signer_at && C->clock.unix_timestamp >= v->next_signer_at ? v->next_signer : v->signer;
}

// Accounts: vault (writable), depositor (signer).  Data: new signer. Effective after the grace.
NOINLINE u64 rotate_signer(void) {
  u64 error;
  if (C->count < 2) return E_ACCOUNTS;
  if (C->data_length != 32) return E_DATA;
  Vault *v = vault_of_depositor(&error);
  if (!v) return error;
  if (!clock_read()) return E_CLOCK;
  copy(v->signer, current_signer(v), 32); // a rotation that is already in effect becomes the base of the next
  copy(v->next_signer, C->data, 32);
  v->next_signer_at = C->clock.unix_timestamp + v->grace_s;
  return 0;
}
