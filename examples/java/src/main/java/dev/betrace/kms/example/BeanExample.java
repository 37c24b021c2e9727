package dev.betrace.kms.example;

import jakarta.enterprise.inject.se.SeContainerInitializer;
import java.nio.charset.StandardCharsets;
import java.util.Map;

/** Seals and opens by the bean: {@code java -Dbetrace.sidecar.kms.target=TARGET ... BeanExample TENANT}. */
public final class BeanExample {
  private BeanExample() {}

  public static void main(String[] arguments) {
    var payload = "alice@example.com".getBytes(StandardCharsets.UTF_8);
    try (var container = SeContainerInitializer.newInstance().initialize()) {
      var kms = container.select(KmsBean.class).get();
      var context = Map.of("field", "email");
      var opened = kms.decrypt(arguments[0], kms.encrypt(arguments[0], payload, context), context);
      System.out.println(new String(opened, StandardCharsets.UTF_8));
    }
  }
}
