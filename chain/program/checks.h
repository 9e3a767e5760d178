// Everything that must hold of an account before it is believed, and the calls into other programs.
#pragma once
#include "state.h"

INLINE Config *as_config(const Account *a) {
  int ours = same_key(a->owner, C->program_id) && a->data_length == sizeof(Config) && a->data[0] == TAG_CONFIG;
  return ours ? (Config *)a->data : 0;
}

INLINE Vault *as_vault(const Account *a) {
  int ours = same_key(a->owner, C->program_id) && a->data_length == sizeof(Vault) && a->data[0] == TAG_VAULT;
  return ours ? (Vault *)a->data : 0;
}

// SPL token account: mint at 0, owner at 32, amount at 64, delegate option at 72, state at 108, close authority option at 129.
INLINE int is_token_account(const Account *a) {
  return same_key(a->owner, TOKEN_PROGRAM) && a->data_length == 165 && a->data[108] == 1;
}
INLINE int has_no_second_authority(const Account *a) {
  return read_u32(a->data + 72) == 0 && read_u32(a->data + 129) == 0;
}
INLINE u64 token_amount(const Account *a) { return read_u64(a->data + 64); }

INLINE int clock_read(void) { return sol_get_clock_sysvar(&C->clock) == 0; }

INLINE void use_vault_seeds(const u8 *depositor, const u8 *config, const u8 *salt, const u8 *bump) {
  C->seeds[0] = (Slice){VAULT_SEED, 8};
  C->seeds[1] = (Slice){depositor, 32};
  C->seeds[2] = (Slice){config, 32};
  C->seeds[3] = (Slice){salt, 8};
  C->seeds[4] = (Slice){bump, 1};
  C->signer_seeds = (SignerSeeds){C->seeds, 5};
}
INLINE void sign_as(Vault *v) { use_vault_seeds(v->depositor, v->config, (u8 *)&v->salt, &v->bump); }

// Creates `target` (a derived address whose seeds are in signer_seeds) with `size` bytes, owned by this program.
NOINLINE u64 create_account(const Account *payer, const Account *target, u64 rent_lamports, u64 size) {
  u8 *data = C->scratch; // SystemInstruction::CreateAccount: u32 0 | lamports | size | owner
  for (int i = 0; i < 4; i++) data[i] = 0;
  write_u64(data + 4, rent_lamports);
  write_u64(data + 12, size);
  copy(data + 20, C->program_id, 32);
  C->metas[0] = (AccountMeta){payer->key, 1, 1};
  C->metas[1] = (AccountMeta){target->key, 1, 1};
  C->instruction = (Instruction){SYSTEM_PROGRAM, C->metas, 2, data, 52};
  return sol_invoke_signed_c(&C->instruction, C->accounts, C->count, &C->signer_seeds, 1) ? E_CPI : 0;
}

// SPL Token Transfer. The authority is the derived address whose seeds are in signer_seeds.
NOINLINE u64 transfer(const u8 *from, const u8 *to, const u8 *authority, u64 amount) {
  if (amount == 0) return 0;
  C->metas[0] = (AccountMeta){from, 1, 0};
  C->metas[1] = (AccountMeta){to, 1, 0};
  C->metas[2] = (AccountMeta){authority, 0, 1};
  C->scratch[0] = 3;
  write_u64(C->scratch + 1, amount);
  C->instruction = (Instruction){TOKEN_PROGRAM, C->metas, 3, C->scratch, 9};
  return sol_invoke_signed_c(&C->instruction, C->accounts, C->count, &C->signer_seeds, 1) ? E_CPI : 0;
}

// SPL Token CloseAccount: the token account's rent goes to `to`.
NOINLINE u64 close_token_account(const u8 *account, const u8 *to, const u8 *authority) {
  C->metas[0] = (AccountMeta){account, 1, 0};
  C->metas[1] = (AccountMeta){to, 1, 0};
  C->metas[2] = (AccountMeta){authority, 0, 1};
  C->scratch[0] = 9;
  C->instruction = (Instruction){TOKEN_PROGRAM, C->metas, 3, C->scratch, 1};
  return sol_invoke_signed_c(&C->instruction, C->accounts, C->count, &C->signer_seeds, 1) ? E_CPI : 0;
}

// The message of the transaction's Ed25519 instruction number `index`, if its first signature is by `signer` over exactly
// `length` bytes that lie in that same instruction; else 0. The precompile has verified the signature itself.
NOINLINE const u8 *signed_message(const Account *sysvar, u8 index, const u8 *signer, u64 length) {
  const u8 *base = sysvar->data;
  if (index >= read_u16(base)) return 0;
  const u8 *p = base + read_u16(base + 2 + 2 * (u64)index);
  p += 2 + 33 * (u64)read_u16(p); // skip the instruction's account list
  if (!same_key(p, ED25519_PROGRAM)) return 0;
  u64 size = read_u16(p + 32);
  const u8 *data = p + 34;
  if (size < 16 || data[0] != 1) return 0; // exactly one signature
  const u8 *offsets = data + 2;
  u64 key_at = read_u16(offsets + 4), message_at = read_u16(offsets + 8), message_size = read_u16(offsets + 10);
  // 0xffff means "in this instruction": anything else points into another one
  if (read_u16(offsets + 2) != 0xffff || read_u16(offsets + 6) != 0xffff || read_u16(offsets + 12) != 0xffff) return 0;
  if (message_size != length || key_at + 32 > size || message_at + length > size) return 0;
  return same_key(data + key_at, signer) ? data + message_at : 0;
}
