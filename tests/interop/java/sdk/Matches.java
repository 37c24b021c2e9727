import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import software.amazon.event.ruler.Ruler;

/** Says of each line of the standard input, an event pattern and an event with a tab between them, whether they match. */
class Matches {
  public static void main(String[] arguments) throws Exception {
    var lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line; (line = lines.readLine()) != null; ) {
      var parts = line.split("\t");
      System.out.println(Ruler.matchesRule(parts[1], parts[0]));
    }
  }
}
