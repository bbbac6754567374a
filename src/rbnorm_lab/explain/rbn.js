// RBN of one channel in closed form, in the letters of the article: X has N instances of L values.
// With m, v the mean and variance of an instance, E and V those of X_cm, and r = 1 / sqrt(V + eps):
//   K_m = m,  K_s = t = r ((1 + w_m) m - E),  X_s = r (x - m) + t,  X_cs = R(w_v t + w_b) X_s
const rbn = (() => {
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const mean = (values) => sum(values) / values.length;
  const sigmoid = (x) => (x < 0 ? Math.exp(x) / (1 + Math.exp(x)) : 1 / (1 + Math.exp(-x)));

  function moments(values) {
    const m = mean(values);
    return { m, v: mean(values.map((x) => (x - m) ** 2)) };
  }

  // Of X_cm, from the moments of X: the mean is (1 + w_m) E(X); the variance within an instance
  // stays, and the variance between instances is multiplied by (1 + w_m)^2.
  function centred({ mean, within, between }, w_m) {
    return { E: (1 + w_m) * mean, V: within + (1 + w_m) ** 2 * between };
  }

  // What `centred` takes, for a batch whose instances have equally many values.
  function batchMoments(instances) {
    const each = instances.map(moments);
    const { m, v } = moments(each.map((one) => one.m));
    return { mean: m, within: mean(each.map((one) => one.v)), between: v };
  }

  // instances: N arrays; statistics: moments of X over the batch, or over the training data.
  function forward(instances, statistics, { w_m, w_v, w_b, gamma = 1, beta = 0, eps = 1e-5 }) {
    const { E, V } = centred(statistics, w_m);
    const r = 1 / Math.sqrt(V + eps);
    return instances.map((x) => {
      const { m, v } = moments(x);
      const t = r * ((1 + w_m) * m - E);
      const gate = sigmoid(w_v * t + w_b);
      const X_cm = x.map((value) => value + w_m * m);
      const X_s = x.map((value) => r * (value - m) + t);
      const X_cs = X_s.map((value) => gate * value);
      const Y = X_cs.map((value) => gamma * value + beta);
      return { m, v, K_s: t, gate, X_cm, X_s, X_cs, Y, E, V };
    });
  }

  return { sum, mean, sigmoid, moments, centred, batchMoments, forward };
})();
