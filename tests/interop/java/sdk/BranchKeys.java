import com.amazonaws.encryptionsdk.AwsCrypto;
import com.amazonaws.encryptionsdk.CommitmentPolicy;
import com.amazonaws.encryptionsdk.CryptoAlgorithm;
import com.amazonaws.encryptionsdk.CryptoResult;
import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.net.URI;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.HashMap;
import java.util.Map;
import software.amazon.awssdk.auth.credentials.AwsBasicCredentials;
import software.amazon.awssdk.auth.credentials.StaticCredentialsProvider;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.dynamodb.DynamoDbClient;
import software.amazon.awssdk.services.kms.KmsClient;
import software.amazon.cryptography.keystore.KeyStore;
import software.amazon.cryptography.keystore.model.CreateKeyInput;
import software.amazon.cryptography.keystore.model.CreateKeyStoreInput;
import software.amazon.cryptography.keystore.model.Discovery;
import software.amazon.cryptography.keystore.model.GetActiveBranchKeyInput;
import software.amazon.cryptography.keystore.model.KMSConfiguration;
import software.amazon.cryptography.keystore.model.KeyStoreConfig;
import software.amazon.cryptography.keystore.model.VersionKeyInput;
import software.amazon.cryptography.materialproviders.IKeyring;
import software.amazon.cryptography.materialproviders.MaterialProviders;
import software.amazon.cryptography.materialproviders.model.CreateAwsKmsHierarchicalKeyringInput;
import software.amazon.cryptography.materialproviders.model.MaterialProvidersConfig;

/**
 * Makes and rotates branch keys, and seals and opens messages under them, with the official AWS Encryption SDK for Java:
 * {@code java -cp 'jars/*' BranchKeys.java ENDPOINT REGION}, which is where KMS and DynamoDB answer.
 *
 * <p>One JSON request a line on the standard input, one JSON answer a line on the standard output, in the same order.
 * Each request names a key store, by {@code "table"}, {@code "logicalName"} and {@code "kmsKey"}, an ARN or empty for the
 * one that each row names:
 *
 * <pre>
 * {"op": "makeTable"}                                                                      {}
 * {"op": "create", "id": BRANCH_KEY_ID, "context": {...}}                                  {}
 * {"op": "rotate", "id": BRANCH_KEY_ID}                                                    {}
 * {"op": "active", "id": BRANCH_KEY_ID}                                                    {"version": UUID, "data": BASE64}
 * {"op": "seal", "id": BRANCH_KEY_ID, "keyring": NAME, "suite": 1144, "frameLength": 4096,
 *  "context": {...}, "data": BASE64}                                                       {"data": BASE64, "context": {...}}
 * {"op": "open", "id": BRANCH_KEY_ID, "keyring": NAME, "data": BASE64}                     {"data": BASE64, "context": {...}}
 * </pre>
 *
 * <p>Requests of one keyring name share a keyring and its cache. Whatever fails answers {@code {"error": TEXT}}.
 */
public final class BranchKeys {
  private static final Gson JSON = new GsonBuilder().disableHtmlEscaping().create();
  private static final int TTL_SECONDS = 600;
  private static final Map<Integer, CryptoAlgorithm> SUITES =
      Map.of(
          0x0478, CryptoAlgorithm.ALG_AES_256_GCM_HKDF_SHA512_COMMIT_KEY,
          0x0578, CryptoAlgorithm.ALG_AES_256_GCM_HKDF_SHA512_COMMIT_KEY_ECDSA_P384);

  private final KmsClient kms;
  private final DynamoDbClient dynamoDb;
  private final MaterialProviders providers =
      MaterialProviders.builder().MaterialProvidersConfig(MaterialProvidersConfig.builder().build()).build();
  private final Map<String, KeyStore> stores = new HashMap<>();
  private final Map<String, IKeyring> keyrings = new HashMap<>();

  private BranchKeys(URI endpoint, Region region) {
    var credentials = StaticCredentialsProvider.create(AwsBasicCredentials.create("testing", "testing"));
    kms = KmsClient.builder().endpointOverride(endpoint).region(region).credentialsProvider(credentials).build();
    dynamoDb =
        DynamoDbClient.builder().endpointOverride(endpoint).region(region).credentialsProvider(credentials).build();
  }

  public static void main(String[] arguments) throws Exception {
    var keys = new BranchKeys(URI.create(arguments[0]), Region.of(arguments[1]));
    var requests = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    var answers = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    for (String line = requests.readLine(); line != null; line = requests.readLine()) {
      Object answer;
      try {
        answer = keys.answer(JSON.fromJson(line, Request.class));
      } catch (Exception error) {
        answer = Map.of("error", error.toString());
      }
      answers.println(JSON.toJson(answer));
    }
  }

  private Object answer(Request request) {
    switch (request.op) {
      case "makeTable":
        store(request).CreateKeyStore(CreateKeyStoreInput.builder().build());
        return Map.of();
      case "create":
        store(request)
            .CreateKey(
                CreateKeyInput.builder().branchKeyIdentifier(request.id).encryptionContext(request.context).build());
        return Map.of();
      case "rotate":
        store(request).VersionKey(VersionKeyInput.builder().branchKeyIdentifier(request.id).build());
        return Map.of();
      case "active":
        var active = GetActiveBranchKeyInput.builder().branchKeyIdentifier(request.id).build();
        var found = store(request).GetActiveBranchKey(active).branchKeyMaterials();
        return Map.of("version", found.branchKeyVersion(), "data", encoded(found.branchKey()));
      case "seal":
        var suite = SUITES.get(request.suite);
        var sealing = crypto().withEncryptionAlgorithm(suite).withEncryptionFrameSize(request.frameLength).build();
        return message(sealing.encryptData(keyring(request), request.bytes(), request.context));
      case "open":
        return message(crypto().build().decryptData(keyring(request), request.bytes()));
      default:
        throw new IllegalArgumentException(request.op);
    }
  }

  private static AwsCrypto.Builder crypto() {
    return AwsCrypto.builder().withCommitmentPolicy(CommitmentPolicy.RequireEncryptRequireDecrypt);
  }

  private KeyStore store(Request request) {
    return stores.computeIfAbsent(
        String.join(" ", request.table, request.logicalName, request.kmsKey),
        name ->
            KeyStore.builder()
                .KeyStoreConfig(
                    KeyStoreConfig.builder()
                        .ddbClient(dynamoDb)
                        .ddbTableName(request.table)
                        .logicalKeyStoreName(request.logicalName)
                        .kmsClient(kms)
                        .kmsConfiguration(configuration(request.kmsKey))
                        .build())
                .build());
  }

  private static KMSConfiguration configuration(String kmsKey) {
    return kmsKey.isEmpty()
        ? KMSConfiguration.builder().discovery(Discovery.builder().build()).build()
        : KMSConfiguration.builder().kmsKeyArn(kmsKey).build();
  }

  private IKeyring keyring(Request request) {
    return keyrings.computeIfAbsent(
        request.keyring,
        name ->
            providers.CreateAwsKmsHierarchicalKeyring(
                CreateAwsKmsHierarchicalKeyringInput.builder()
                    .keyStore(store(request))
                    .branchKeyId(request.id)
                    .ttlSeconds(TTL_SECONDS)
                    .build()));
  }

  private static Object message(CryptoResult<byte[], ?> result) {
    return Map.of("data", encoded(ByteBuffer.wrap(result.getResult())), "context", result.getEncryptionContext());
  }

  private static String encoded(ByteBuffer bytes) {
    return StandardCharsets.US_ASCII.decode(Base64.getEncoder().encode(bytes)).toString();
  }

  private static final class Request {
    String op;
    String table;
    String logicalName;
    String kmsKey;
    String id;
    String keyring;
    int suite;
    int frameLength;
    Map<String, String> context;
    String data;

    byte[] bytes() {
      return Base64.getDecoder().decode(data);
    }
  }
}
