// The C ABI of a Solana program: what the loader passes in, what the runtime's syscalls take.
// Layouts follow the public documentation of the aligned loader input and of the sol_* syscalls.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long i64;

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))
#define MAX_ACCOUNTS 40

// Stack frames are small (512 bytes); what is large lives in the heap, which starts zeroed.
#define HEAP_START 0x300000000UL

typedef struct {
  const u8 *pubkey;
  u8 is_writable, is_signer;
} AccountMeta;

typedef struct {
  const u8 *program_id;
  AccountMeta *accounts;
  u64 account_count;
  const u8 *data;
  u64 data_length;
} Instruction;

typedef struct {
  const u8 *key;
  u64 *lamports;
  u64 data_length;
  u8 *data;
  const u8 *owner;
  u64 rent_epoch;
  u8 is_signer, is_writable, executable;
} Account;

typedef struct {
  const u8 *bytes;
  u64 length;
} Slice;

typedef struct {
  const Slice *seeds;
  u64 count;
} SignerSeeds;

typedef struct {
  u64 slot;
  i64 epoch_start;
  u64 epoch, leader_epoch;
  i64 unix_timestamp;
} Clock;

extern void sol_log_(const char *, u64);
extern u64 sol_invoke_signed_c(const Instruction *, const Account *, u64, const SignerSeeds *, u64);
extern u64 sol_get_clock_sysvar(Clock *);
extern u64 sol_create_program_address(const Slice *, u64, const u8 *program_id, u8 *out);
extern u64 sol_sha256(const Slice *, u64, u8 *out);
extern void sol_set_return_data(const u8 *, u64);

// Byte by byte: instruction data has no alignment.
INLINE int equal(const u8 *a, const u8 *b, u64 length) {
  for (u64 i = 0; i < length; i++)
    if (a[i] != b[i]) return 0;
  return 1;
}
INLINE int same_key(const u8 *a, const u8 *b) { return equal(a, b, 32); }
INLINE void copy(u8 *to, const u8 *from, u64 length) {
  for (u64 i = 0; i < length; i++) to[i] = from[i];
}
INLINE u16 read_u16(const u8 *p) { return p[0] | (u16)p[1] << 8; }
INLINE u32 read_u32(const u8 *p) { return p[0] | p[1] << 8 | p[2] << 16 | (u32)p[3] << 24; }
INLINE u64 read_u64(const u8 *p) {
  u64 value = 0;
  for (int i = 7; i >= 0; i--) value = value << 8 | p[i];
  return value;
}
INLINE void write_u64(u8 *p, u64 value) {
  for (int i = 0; i < 8; i++) p[i] = value >> (8 * i);
}

// Parses the loader's input. Returns the number of accounts, or -1 when there are more than MAX_ACCOUNTS.
INLINE i64 parse_input(u8 *input, Account *accounts, u8 **data, u64 *data_length, u8 **program_id) {
  u64 count = *(u64 *)input;
  u8 *p = input + 8;
  if (count > MAX_ACCOUNTS) return -1;
  for (u64 i = 0; i < count; i++) {
    u8 duplicate_of = *p;
    if (duplicate_of != 0xff) { // an account that is listed again: same pointers, so changes are seen through both
      accounts[i] = accounts[duplicate_of];
      p += 8;
      continue;
    }
    Account *a = &accounts[i];
    a->is_signer = p[1];
    a->is_writable = p[2];
    a->executable = p[3];
    a->key = p + 8;
    a->owner = p + 40;
    a->lamports = (u64 *)(p + 72);
    a->data_length = *(u64 *)(p + 80);
    a->data = p + 88;
    p += 88 + a->data_length + 10240; // the loader reserves room for the account to grow
    p = (u8 *)(((u64)p + 7) & ~7UL);
    a->rent_epoch = *(u64 *)p;
    p += 8;
  }
  *data_length = *(u64 *)p;
  *data = p + 8;
  *program_id = p + 8 + *data_length;
  return (i64)count;
}
