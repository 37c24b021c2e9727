/* A PKCS#11 library in front of another one (PKCS11_REAL) that misbehaves as the file PKCS11_FAULTS says, read anew at
 * each call:
 *
 *   hang C_Encrypt              the function never returns
 *   crash C_Encrypt             it dies of SIGSEGV
 *   fail C_Encrypt 0x30         it returns that CK_RV
 *   iv                          the token makes the IVs, and refuses others
 *   aad                         the token forgets the additional authenticated data
 *   gcm                         the token has no AES-GCM
 *   flags 0x20000               the token has more flags
 *
 * All arguments of all functions are integers or pointers of at most six words, so one signature passes them on.
 */
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

typedef unsigned long word;
typedef word function(word, word, word, word, word, word);

enum { INITIALIZE = 0, TOKEN_INFO = 6, MECHANISMS = 7, OPEN_SESSION = 12, LOGIN = 18, FIND_INIT = 26, ENCRYPT_INIT = 29, ENCRYPT = 30, DECRYPT_INIT = 33, DECRYPT = 34, RANDOM = 64, FUNCTIONS = 68 };

struct list { unsigned char version[2]; function *functions[FUNCTIONS]; };
struct mechanism { word type; void *parameter; word length; };
struct gcm { unsigned char *iv; word iv_bytes, iv_bits; unsigned char *aad; word aad_bytes, tag_bits; };

static struct list ours;
static function *real[FUNCTIONS];

static int mode(const char *wanted, const char *name, word *value) {
  char line[80] = "", what[20] = "", which[40] = "";
  FILE *file = fopen(getenv("PKCS11_FAULTS"), "r");
  if (!file) return 0;
  if (!fgets(line, sizeof line, file)) line[0] = 0;
  fclose(file);
  *value = 0;
  if (name) return sscanf(line, "%19s %39s %lx", what, which, value) >= 2 && !strcmp(what, wanted) && !strcmp(which, name);
  return sscanf(line, "%19s %lx", what, value) >= 1 && !strcmp(what, wanted);
}

static word before(const char *name) {
  word value;
  while (mode("hang", name, &value)) sleep(1000);
  if (mode("crash", name, &value)) raise(SIGSEGV);
  return mode("fail", name, &value) ? value : 0;
}

#define PASS(number, name) \
  static word name(word a, word b, word c, word d, word e, word f) { \
    word fault = before(#name); \
    return fault ? fault : real[number](a, b, c, d, e, f); \
  }
PASS(INITIALIZE, C_Initialize)
PASS(OPEN_SESSION, C_OpenSession)
PASS(LOGIN, C_Login)
PASS(FIND_INIT, C_FindObjectsInit)
PASS(ENCRYPT, C_Encrypt)
PASS(DECRYPT, C_Decrypt)
PASS(RANDOM, C_GenerateRandom)

static word C_GetTokenInfo(word slot, word info, word c, word d, word e, word f) {
  word more, result = real[TOKEN_INFO](slot, info, c, d, e, f);
  if (!result && mode("flags", NULL, &more)) *(word *)(info + 96) |= more;
  return result;
}

static word C_GetMechanismList(word slot, word list, word count, word d, word e, word f) {
  word value, result = real[MECHANISMS](slot, list, count, d, e, f);
  if (!result && list && mode("gcm", NULL, &value))
    for (word i = 0; i < *(word *)count; i++) if (((word *)list)[i] == 0x1087) ((word *)list)[i] = 0x1082; /* CKM_AES_CBC */
  return result;
}

static word C_EncryptInit(word a, word b, word c, word d, word e, word f) {
  struct gcm *parameters = ((struct mechanism *)b)->parameter;
  word value;
  if (mode("iv", NULL, &value)) {
    for (word i = 0; i < parameters->iv_bytes; i++) if (parameters->iv[i]) return 0x71; /* CKR_MECHANISM_PARAM_INVALID */
    if (getrandom(parameters->iv, parameters->iv_bytes, 0) < 0) return 5;
  }
  if (mode("aad", NULL, &value)) parameters->aad_bytes = 0;
  return real[ENCRYPT_INIT](a, b, c, d, e, f);
}

static word C_DecryptInit(word a, word b, word c, word d, word e, word f) {
  word value;
  if (mode("aad", NULL, &value)) ((struct gcm *)((struct mechanism *)b)->parameter)->aad_bytes = 0;
  return real[DECRYPT_INIT](a, b, c, d, e, f);
}

word C_GetFunctionList(struct list **found) {
  struct list *theirs;
  void *library = dlopen(getenv("PKCS11_REAL"), RTLD_NOW);
  word (*get)(struct list **) = library ? (word (*)(struct list **))dlsym(library, "C_GetFunctionList") : NULL;
  if (!get || get(&theirs)) return 5; /* CKR_GENERAL_ERROR */
  memcpy(real, theirs->functions, sizeof real);
  ours = *theirs;
  ours.functions[INITIALIZE] = C_Initialize;
  ours.functions[TOKEN_INFO] = C_GetTokenInfo;
  ours.functions[MECHANISMS] = C_GetMechanismList;
  ours.functions[OPEN_SESSION] = C_OpenSession;
  ours.functions[LOGIN] = C_Login;
  ours.functions[FIND_INIT] = C_FindObjectsInit;
  ours.functions[ENCRYPT_INIT] = C_EncryptInit;
  ours.functions[ENCRYPT] = C_Encrypt;
  ours.functions[DECRYPT_INIT] = C_DecryptInit;
  ours.functions[DECRYPT] = C_Decrypt;
  ours.functions[RANDOM] = C_GenerateRandom;
  *found = &ours;
  return 0;
}
