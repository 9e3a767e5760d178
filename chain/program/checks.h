// Everything that must hold of an account before it is believed, and the calls into other programs.
#pragma once
#include "state.h"

NOINLINE Config *as_config(const Account *a) {
  int ours = same_key(a->owner, C->program_id) && a->data_length == sizeof(Config) && a->data[0] == TAG_CONFIG;
  return ours ? (Config *)a->data : 0;
}

INLINE u64 size_of_kind(u8 kind) { return kind == KIND_COLLATERAL ? sizeof(Collateral) : sizeof(Vault); }

// A vault of any kind: whoever cares about the kind asks for it.
NOINLINE Vault *as_vault(const Account *a) {
  if (!same_key(a->owner, C->program_id) || a->data_length < sizeof(Vault) || a->data[0] != TAG_VAULT) return 0;
  Vault *v = (Vault *)a->data;
  return a->data_length == size_of_kind(v->kind) ? v : 0;
}

// SPL token account: mint at 0, owner at 32, amount at 64, delegate option at 72, state at 108 (1: initialized, 2: frozen),
// close authority option at 129.
INLINE const u8 *token_mint(const Account *a) { return a->data; }
INLINE const u8 *token_owner(const Account *a) { return a->data + 32; }
INLINE u64 token_amount(const Account *a) { return read_u64(a->data + 64); }
INLINE int is_token_account(const Account *a) {
  return same_key(a->owner, TOKEN_PROGRAM) && a->data_length == 165 && a->data[108] == 1;
}
NOINLINE int is_token_account_of(const Account *a, const u8 *owner, const u8 *mint) {
  return is_token_account(a) && same_key(token_owner(a), owner) && same_key(token_mint(a), mint);
}
INLINE int has_no_second_authority(const Account *a) {
  return read_u32(a->data + 72) == 0 && read_u32(a->data + 129) == 0;
}

// The vault of account 0, if account 1 is its depositor and signed; else 0 with the error in *error.
NOINLINE Vault *vault_of_depositor(u64 *error) {
  Account *a = C->accounts;
  Vault *v = as_vault(&a[0]);
  *error = !v ? E_NOT_OURS : !a[1].is_signer || !same_key(a[1].key, v->depositor) ? E_SIGNER : 0;
  return *error ? 0 : v;
}

// What every payment leaves behind: the total, the count, and the root of the usage records it pays, chained to all before.
INLINE void record_payment(Vault *v, u64 sum, const u8 *root) {
  v->settled += sum;
  v->captures += 1;
  C->hash_parts[0] = (Slice){v->roots, 32};
  C->hash_parts[1] = (Slice){root, 32};
  sol_sha256(C->hash_parts, 2, C->digest);
  copy(v->roots, C->digest, 32);
}

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

// Whether the seeds in C->seeds lead to this address under `program_id`.
INLINE int is_derived(const u8 *address, u64 seeds, const u8 *program_id) {
  return sol_create_program_address(C->seeds, seeds, program_id, C->address) == 0 && same_key(C->address, address);
}

// One instruction of the system program: `kind`, then what is in scratch from byte 4 on.
NOINLINE u64 call_system(u8 kind, u64 accounts, u64 data_length) {
  for (int i = 0; i < 4; i++) C->scratch[i] = 0;
  C->scratch[0] = kind;
  C->instruction = (Instruction){SYSTEM_PROGRAM, C->metas, accounts, C->scratch, data_length};
  return sol_invoke_signed_c(&C->instruction, C->accounts, C->count, &C->signer_seeds, 1) ? E_CPI : 0;
}

// Makes `target`, whose seeds are in signer_seeds, an account of this program with `size` zero bytes. Anybody can send
// lamports to an address before it is used, which makes CreateAccount fail: so pay what is missing, allocate, assign.
NOINLINE u64 create_account(const Account *payer, const Account *target, u64 rent_lamports, u64 size) {
  u64 failed = 0;
  if (!is_derived(target->key, C->signer_seeds.count, C->program_id)) return E_ADDRESS;
  if (!same_key(target->owner, SYSTEM_PROGRAM) || target->data_length) return E_STATE;
  if (rent_lamports == 0) return E_RENT; // an account without lamports is gone after the transaction, and its address free again
  if (*target->lamports < rent_lamports) {
    write_u64(C->scratch + 4, rent_lamports - *target->lamports);
    C->metas[0] = (AccountMeta){payer->key, 1, 1};
    C->metas[1] = (AccountMeta){target->key, 1, 0};
    failed = call_system(SYSTEM_TRANSFER, 2, 12);
  }
  C->metas[0] = (AccountMeta){target->key, 1, 1};
  write_u64(C->scratch + 4, size);
  if (!failed) failed = call_system(SYSTEM_ALLOCATE, 1, 12);
  copy(C->scratch + 4, C->program_id, 32);
  return failed ? failed : call_system(SYSTEM_ASSIGN, 1, 36);
}

// Gives all lamports of an account of this program to `to`, and the empty account back to the system program, so that nobody
// can keep it alive by sending lamports to it in the same transaction.
INLINE void destroy(Account *a, const Account *to) {
  for (u64 i = 0; i < a->data_length; i++) a->data[i] = 0;
  *to->lamports += *a->lamports;
  *a->lamports = 0;
  *(u64 *)(a->data - 8) = 0; // the loader reads the new length here
  copy((u8 *)a->owner, SYSTEM_PROGRAM, 32);
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
